//! Who may have how much of a limit. Whole numbers only, so that every backend comes to the same: the
//! script `share.lua` does what is done here.

/// The whole that is shared out.
const WHOLE: u64 = 1_000_000;
/// A demand beyond this is as good as this: the product with [`WHOLE`] is exact in a script's numbers.
const MOST_DEMAND: u64 = 1_000_000_000;

/// What an edge wants and has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lease {
    pub(super) demand: u64,
    /// Of [`WHOLE`].
    pub(super) part: u64,
}

/// A lease beside those of the other edges: the fair part, or what the others have left of the whole.
/// They get their fair parts as they come for new leases.
pub(super) fn grant(others: &[Lease], demand: u64) -> Lease {
    let demand = clamp(demand);
    let mut demands: Vec<u64> = others.iter().map(|lease| lease.demand).collect();
    demands.push(demand);
    let taken: u64 = others.iter().map(|lease| lease.part).sum();
    let part = fair(&demands, others.len()).min(WHOLE.saturating_sub(taken));
    Lease { demand, part }
}

pub(super) fn clamp(demand: u64) -> u64 {
    demand.min(MOST_DEMAND)
}

/// As a part of 1.
pub(super) fn part(part: u64) -> f64 {
    // Both are small enough to be exact.
    part as f64 / WHOLE as f64
}

/// What the one at `mine` should have: in proportion to its demand, and a tenth of an even part at
/// least.
fn fair(demands: &[u64], mine: usize) -> u64 {
    let count = demands.len() as u64;
    if demands.iter().all(|demand| *demand == 0) {
        return WHOLE / count;
    }
    let least = WHOLE / 10 / count;
    let mut small = vec![false; demands.len()];
    // Those who get the least leave less to the others, of whom some then get the least, too.
    loop {
        let of_small = least * small.iter().filter(|small| **small).count() as u64;
        let demand_of_rest: u64 = demands
            .iter()
            .zip(&small)
            .filter(|(_, small)| !**small)
            .map(|(demand, _)| demand)
            .sum();
        let proportional = |demand: u64| demand * (WHOLE - of_small) / demand_of_rest;
        let now: Vec<bool> = demands
            .iter()
            .zip(&small)
            .map(|(demand, small)| *small || proportional(*demand) < least)
            .collect();
        if now == small {
            return if small[mine] { least } else { proportional(demands[mine]) };
        }
        small = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(demands: &[u64]) -> Vec<u64> {
        (0..demands.len()).map(|mine| fair(demands, mine)).collect()
    }

    #[test]
    fn parts_follow_the_demand() {
        assert_eq!(all(&[7]), [1_000_000]);
        assert_eq!(all(&[300, 100]), [750_000, 250_000]);
        assert_eq!(all(&[0, 0, 0, 0]), [250_000; 4]);
        assert_eq!(all(&[100, 0]), [950_000, 50_000], "a tenth of an even part");
        // The third would have 25,000 of the whole, and little less than that beside the second.
        assert_eq!(all(&[98_000, 0, 2_500, 0]), [925_000, 25_000, 25_000, 25_000]);
        assert_eq!(all(&[u64::MAX, u64::MAX].map(clamp)), [500_000, 500_000]);
    }

    #[test]
    fn nobody_gets_what_another_one_still_has() {
        let first = grant(&[], 300);
        assert_eq!(first.part, WHOLE);
        let second = grant(&[first], 100);
        assert_eq!(second.part, 0);
        let first = grant(&[second], 300);
        assert_eq!(first.part, 750_000);
        assert_eq!(grant(&[first], 100).part, 250_000);
    }
}
