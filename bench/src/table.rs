//! Medians over the rounds, their ratios, and how they are shown.

use std::collections::BTreeMap;

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

/// A system, and the one that its figures are compared with.
#[derive(Clone, Copy)]
pub(crate) struct Column {
    pub(crate) system: &'static str,
    pub(crate) base: Option<&'static str>,
}

/// One figure of one system, as it stands in the JSON report.
#[derive(Serialize)]
struct Figure<'a> {
    scenario: &'a str,
    metric: &'a str,
    system: &'static str,
    median: f64,
    rounds: &'a [f64],
    /// Left out where there is nothing to compare with.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    ratio: Option<Ratio>,
}

#[derive(Serialize)]
struct Ratio {
    base: &'static str,
    ratio: f64,
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

    pub(crate) fn to_json(
        &self,
        columns: &[Column],
    ) -> Result<serde_json::Value, serde_json::Error> {
        let figures = self.rows.iter().flat_map(|row| {
            columns.iter().filter_map(|column| {
                let rounds = row.systems.get(column.system)?;
                Some(Figure {
                    scenario: &row.scenario,
                    metric: &row.metric,
                    system: column.system,
                    median: median(rounds),
                    rounds,
                    ratio: row.ratio(column),
                })
            })
        });
        figures.map(serde_json::to_value).collect()
    }

    /// For a terminal: one block for each scenario, a row for each figure, a column for each system.
    pub(crate) fn to_text(&self, columns: &[Column]) -> String {
        let mut text = String::new();
        for grid in self.grids(columns) {
            let width = |column: usize| {
                let cells = grid.iter().map(|line| line[column].chars().count());
                cells.max().unwrap_or_default()
            };
            text.push('\n');
            for (index, line) in grid.iter().enumerate() {
                let indent = if index == 0 { 0 } else { 2 };
                let name = width(0) + 2 - indent;
                text.push_str(&format!("{:indent$}{:<name$}", "", line[0]));
                for (column, cell) in line.iter().enumerate().skip(1) {
                    text.push_str(&format!("  {cell:>0$}", width(column)));
                }
                text.push('\n');
            }
        }
        text
    }

    /// The same as Markdown tables.
    pub(crate) fn to_markdown(&self, columns: &[Column]) -> String {
        let mut text = String::new();
        for grid in self.grids(columns) {
            text.push('\n');
            for (index, line) in grid.iter().enumerate() {
                text.push_str(&format!("| {} |\n", line.join(" | ")));
                if index == 0 {
                    text.push_str(&format!("|---|{}\n", "--:|".repeat(line.len() - 1)));
                }
            }
        }
        text
    }

    /// For each scenario its lines of cells, the heads first. Systems without a figure in it are left out.
    fn grids(&self, columns: &[Column]) -> Vec<Vec<Vec<String>>> {
        self.rows
            .chunk_by(|one, next| one.scenario == next.scenario)
            .map(|rows| {
                let takes_part = |column: &&Column| {
                    rows.iter().any(|row| row.systems.contains_key(column.system))
                };
                let columns: Vec<&Column> = columns.iter().filter(takes_part).collect();
                let heads = columns.iter().map(|Column { system, base }| match base {
                    Some(base) if columns.iter().any(|column| column.system == *base) => {
                        format!("{system} (/ {base})")
                    }
                    _ => (*system).to_owned(),
                });
                let mut grid = vec![[rows[0].scenario.clone()].into_iter().chain(heads).collect()];
                for row in rows {
                    let cells = columns.iter().map(|column| row.cell(column));
                    grid.push([row.metric.clone()].into_iter().chain(cells).collect());
                }
                grid
            })
            .collect()
    }
}

impl Row {
    fn median(&self, system: &str) -> Option<f64> {
        self.systems.get(system).map(|rounds| median(rounds))
    }

    fn ratio(&self, column: &Column) -> Option<Ratio> {
        let base = column.base?;
        let ratio = self.median(column.system)? / self.median(base)?;
        ratio.is_finite().then_some(Ratio { base, ratio })
    }

    fn cell(&self, column: &Column) -> String {
        match (self.median(column.system), self.ratio(column)) {
            (None, _) => "-".to_owned(),
            (Some(value), None) => number(value),
            (Some(value), Some(Ratio { ratio, .. })) => {
                format!("{} ({ratio:.2}x)", number(value))
            }
        }
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
        let columns = [
            Column { system: "nginx", base: Some("direct") },
            Column { system: "uniroute", base: Some("nginx") },
            Column { system: "absent", base: Some("nginx") },
        ];
        let json = results.to_json(&columns).unwrap();
        assert_eq!(json[0]["median"], 20.0);
        assert!(json[0].get("ratio").is_none());
        assert_eq!(json[1]["base"], "nginx");
        assert_eq!(json[1]["ratio"], 2.0);
        let markdown = "
| bulk | nginx | uniroute (/ nginx) |
|---|--:|--:|
| MB/s | 20.0 | 40.0 (2.00x) |
";
        assert_eq!(results.to_markdown(&columns), markdown);
        let text = "
bulk    nginx  uniroute (/ nginx)
  MB/s   20.0        40.0 (2.00x)
";
        assert_eq!(results.to_text(&columns), text);
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
