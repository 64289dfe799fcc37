//! Medians over the rounds, their ratios, and how they are shown.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

/// All figures of a run, scenario by scenario.
#[derive(Default)]
pub(crate) struct Results {
    rows: Vec<Row>,
}

struct Row {
    scenario: String,
    metric: String,
    /// The figure of each round, by system.
    systems: BTreeMap<&'static str, Vec<f64>>,
}

/// One figure of one system, as it stands in the JSON report.
#[derive(Serialize)]
struct Figure<'a> {
    scenario: &'a str,
    metric: &'a str,
    system: &'static str,
    median: f64,
    rounds: &'a [f64],
    /// By the other system, where that has such a figure.
    ratios: BTreeMap<&'static str, f64>,
}

impl Results {
    pub(crate) fn record(
        &mut self,
        scenario: &str,
        metric: &str,
        system: &'static str,
        value: f64,
    ) {
        let found =
            self.rows.iter().position(|row| row.scenario == scenario && row.metric == metric);
        let index = found.unwrap_or_else(|| self.insert(scenario, metric));
        self.rows[index].systems.entry(system).or_default().push(value);
    }

    /// A new row, below those of the same scenario.
    fn insert(&mut self, scenario: &str, metric: &str) -> usize {
        let last = self.rows.iter().rposition(|row| row.scenario == scenario);
        let index = last.map_or(self.rows.len(), |last| last + 1);
        let (scenario, metric) = (scenario.to_owned(), metric.to_owned());
        self.rows.insert(index, Row { scenario, metric, systems: BTreeMap::new() });
        index
    }

    /// With the ratios to each of `bases`.
    pub(crate) fn to_json(
        &self,
        bases: &[&'static str],
    ) -> Result<serde_json::Value, serde_json::Error> {
        let figures = self.rows.iter().flat_map(|row| {
            row.systems.iter().map(|(system, rounds)| Figure {
                scenario: &row.scenario,
                metric: &row.metric,
                system,
                median: median(rounds),
                rounds,
                ratios: bases
                    .iter()
                    .filter_map(|base| Some((*base, row.ratio(system, base)?)))
                    .collect(),
            })
        });
        figures.map(serde_json::to_value).collect()
    }

    /// One block for each scenario: a row for each figure, a column for each system and for each ratio of two.
    pub(crate) fn to_table(&self, systems: &[&str], ratios: &[(&str, &str)]) -> String {
        let is_there = |(of, to): &&(&str, &str)| systems.contains(of) && systems.contains(to);
        let ratios: Vec<&(&str, &str)> = ratios.iter().filter(is_there).collect();
        // As wide as the longest name, or as the longest figure.
        let width = |name: usize| name.max(10) + 2;
        let mut text = String::new();
        let mut scenario = "";
        for row in &self.rows {
            if row.scenario != scenario {
                scenario = &row.scenario;
                let _ = write!(text, "\n{scenario}\n  {:<26}", "");
                for system in systems {
                    let _ = write!(text, "{system:>0$}", width(system.len()));
                }
                for (of, to) in &ratios {
                    let _ = write!(
                        text,
                        "{:>1$}",
                        format!("{of}/{to}"),
                        width(of.len() + 1 + to.len())
                    );
                }
                text.push('\n');
            }
            let _ = write!(text, "  {:<26}", row.metric);
            for system in systems {
                let cell = row.median(system).map_or("-".to_owned(), number);
                let _ = write!(text, "{cell:>0$}", width(system.len()));
            }
            for (of, to) in &ratios {
                let cell = row.ratio(of, to).map_or("-".to_owned(), |ratio| format!("{ratio:.2}x"));
                let _ = write!(text, "{cell:>0$}", width(of.len() + 1 + to.len()));
            }
            text.push('\n');
        }
        text
    }
}

impl Row {
    fn median(&self, system: &str) -> Option<f64> {
        self.systems.get(system).map(|rounds| median(rounds))
    }

    fn ratio(&self, of: &str, to: &str) -> Option<f64> {
        let ratio = self.median(of)? / self.median(to)?;
        (of != to && ratio.is_finite()).then_some(ratio)
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Three significant digits or so.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_compare_medians() {
        let mut results = Results::default();
        for value in [30.0, 10.0, 20.0] {
            results.record("bulk", "MB/s", "nginx", value);
        }
        results.record("bulk", "MB/s", "uniroute", 40.0);
        let json = results.to_json(&["direct", "nginx"]).unwrap();
        assert_eq!(json[0]["median"], 20.0);
        assert_eq!(json[1]["ratios"]["nginx"], 2.0);
        assert!(json[1]["ratios"].get("direct").is_none());
        let table = results.to_table(&["nginx", "uniroute"], &[("uniroute", "nginx")]);
        assert!(table.contains("2.00x"), "{table}");
    }

    #[test]
    fn a_scenario_stays_together() {
        let mut results = Results::default();
        for (scenario, metric) in [("a", "1"), ("b", "1"), ("a", "2")] {
            results.record(scenario, metric, "direct", 1.0);
        }
        let order: Vec<&str> = results.rows.iter().map(|row| row.scenario.as_str()).collect();
        assert_eq!(order, ["a", "a", "b"]);
    }

    #[test]
    fn an_even_number_of_rounds_has_a_median() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
