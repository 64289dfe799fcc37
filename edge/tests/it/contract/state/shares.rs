//! What edges may have of a limit never adds up to more than all of it, and every backend comes to
//! the same parts.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;
use tokio::time::Instant;
use uniroute_edge::state::State;

use super::LONG;
use crate::harness::redis::TestRedis;

/// Parts are multiples of a millionth.
const EXACT: f64 = 1e-9;

#[derive(Clone, Debug)]
enum Step {
    /// An edge asks: which one, its demand, and for how many milliseconds.
    Ask(u8, u64, u64),
    /// So many milliseconds go by.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let demand = prop_oneof![Just(0), 1..20u64, 1..100_000u64, Just(u64::MAX)];
    prop_oneof![
        4 => (0..7u8, demand, 1..5_000u64).prop_map(|(edge, demand, ttl)| Step::Ask(edge, demand, ttl)),
        1 => (1..3_000u64).prop_map(Step::Wait),
    ]
}

/// On a clock that stands still until it is moved.
fn paused(run: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time().start_paused(true).build().unwrap().block_on(run);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn parts_never_add_up_to_more_than_all(steps in prop::collection::vec(step(), 1..80)) {
        paused(async {
            let state = State::in_memory();
            let mut living: HashMap<u8, (f64, Instant)> = HashMap::new();
            for step in steps {
                match step {
                    Step::Ask(edge, demand, millis) => {
                        let ttl = Duration::from_millis(millis);
                        let part = state.share("all", &edge.to_string(), demand, ttl).await.unwrap();
                        living.insert(edge, (part, Instant::now() + ttl));
                    }
                    Step::Wait(millis) => tokio::time::advance(Duration::from_millis(millis)).await,
                }
                living.retain(|_, (_, until)| *until > Instant::now());
                let sum: f64 = living.values().map(|(part, _)| part).sum();
                assert!(sum <= 1.0 + EXACT, "{living:?}");
                assert!(living.values().all(|(part, _)| *part >= 0.0));
            }
        });
    }

    /// When those with too much have given it up, everybody has a fair part.
    #[test]
    fn nothing_is_left_over(demands in prop::collection::vec(0..10_000u64, 1..9)) {
        paused(async {
            let state = State::in_memory();
            let mut parts = Vec::new();
            for _ in 0..3 {
                parts.clear();
                for (edge, demand) in demands.iter().enumerate() {
                    let part = state.share("all", &edge.to_string(), *demand, LONG).await.unwrap();
                    parts.push(part);
                }
            }
            let (sum, least) = (parts.iter().sum::<f64>(), 0.1 / demands.len() as f64);
            assert!(sum > 0.9999 && sum <= 1.0 + EXACT, "{parts:?}");
            assert!(parts.iter().all(|part| *part > least - 1e-5), "{parts:?}");
        });
    }
}

/// Two hundred steps, always the same ones.
fn walk() -> impl Iterator<Item = (String, u64)> {
    let mut random: u64 = 42;
    let mut next = move |below: u64| {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % below
    };
    (0..200).map(move |step| {
        // More and more edges, most of them with little.
        let edge = format!("edge-{}", next(2 + step / 10));
        let demand = match next(5) {
            0 => 0,
            1 => 1,
            2 => next(10),
            3 => next(1_000),
            _ => next(3_000_000_000),
        };
        (edge, demand)
    })
}

#[tokio::test]
async fn redis_comes_to_the_same_parts_as_memory() {
    let redis = TestRedis::start().await;
    let (there, here) = (redis.state().await, State::in_memory());
    for (step, (edge, demand)) in walk().enumerate() {
        let parts = (
            there.share("walk", &edge, demand, LONG).await.unwrap(),
            here.share("walk", &edge, demand, LONG).await.unwrap(),
        );
        assert_eq!(parts.0, parts.1, "step {step}: {edge} wants {demand}");
    }
}
