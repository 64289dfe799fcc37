//! The project's HTTP conformance suite: raw sockets at both ends, and one table of cases that runs
//! against a real edge with its agent and against nginx, which shows that a case asks for what HTTP
//! asks for. Where nginx does something else, the case says so, and that is checked too.
//!
//! A failing case prints its name, its rule and the bytes that both sides saw. To run one of them:
//! `UNIROUTE_CASE=smuggling/cl-te cargo nextest run -p uniroute-edge --test it conformance::`.

mod answers;
mod case;
mod fields;
mod frames;
mod framing;
mod h2;
mod h2_limits;
mod hops;
mod hosts;
mod hpack;
mod interim;
mod lives;
mod message;
mod peers;
mod request_line;
mod run;
mod smuggling;
mod subject;
mod upgrades;

use std::collections::HashSet;

use self::{
    case::{Case, Nginx},
    subject::Subject,
};

/// A test for each group and subject, and the whole table.
macro_rules! groups {
    ($($group:ident: $tunnel:ident, $nginx:ident;)+) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $tunnel() {
                run::run($group::cases(), Subject::Tunnel).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn $nginx() {
                run::run($group::cases(), Subject::Nginx).await;
            }
        )+

        fn all() -> Vec<Case> {
            [$($group::cases()),+].into_iter().flatten().collect()
        }
    };
}

groups! {
    request_line: request_line_through_the_tunnel, request_line_through_nginx;
    hosts: hosts_through_the_tunnel, hosts_through_nginx;
    fields: fields_through_the_tunnel, fields_through_nginx;
    framing: framing_through_the_tunnel, framing_through_nginx;
    smuggling: smuggling_through_the_tunnel, smuggling_through_nginx;
    hops: hops_through_the_tunnel, hops_through_nginx;
    interim: interim_through_the_tunnel, interim_through_nginx;
    answers: answers_through_the_tunnel, answers_through_nginx;
    upgrades: upgrades_through_the_tunnel, upgrades_through_nginx;
    h2: h2_through_the_tunnel, h2_through_nginx;
    h2_limits: h2_limits_through_the_tunnel, h2_limits_through_nginx;
    lives: lives_through_the_tunnel, lives_through_nginx;
}

/// What keeps the table honest: how many cases there are, and that most of them are what the
/// reference does too. None can be left out of a run, and a mark that is stale fails.
#[test]
fn the_table_is_as_long_as_it_was() {
    let all = all();
    let names: HashSet<&str> = all.iter().map(|case| case.name).collect();
    assert_eq!(names.len(), all.len(), "two cases have one name");
    let same = all.iter().filter(|case| matches!(case.nginx, Nginx::Same)).count();
    assert!(all.len() >= CASES, "{} cases", all.len());
    assert!(same >= SAME_ON_NGINX, "{same} of {} cases hold on nginx", all.len());
}

/// At least so many cases, and so many of them that nginx answers as the tunnel has to.
const CASES: usize = 650;
const SAME_ON_NGINX: usize = 450;
