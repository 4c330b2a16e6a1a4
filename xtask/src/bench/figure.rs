//! One line of the table.

use serde::{Deserialize, Serialize};

/// What was measured, and what it may be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// Its name.
    pub(crate) what: String,
    /// Of `p50`, `p99` and `bare`.
    pub(crate) unit: String,
    pub(crate) p50: f64,
    pub(crate) p99: Option<f64>,
    /// The same without us.
    pub(crate) bare: Option<f64>,
    /// What the budget is about.
    pub(crate) judged: Judged,
    /// None where this machine cannot say: of a call that costs nothing on the simulator, say.
    pub(crate) budget: Option<f64>,
}

/// Which number the budget is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Judged {
    /// The median is at most the budget.
    Median,
    /// The 99th percentile is.
    Percentile,
    /// The median less the bare one is.
    Over,
    /// The median divided by the bare one is.
    Times,
    /// The median is at least the budget.
    AtLeast,
}

impl Figure {
    /// Of what the columns are.
    pub(crate) const HEAD: &str = "what                                               p50          p99       x bare        judged        budget   before";

    /// What is compared with the budget.
    pub(crate) fn value(&self) -> f64 {
        let bare = self.bare.unwrap_or(f64::NAN);
        match self.judged {
            Judged::Median | Judged::AtLeast => self.p50,
            Judged::Percentile => self.p99.unwrap_or(f64::INFINITY),
            Judged::Over => self.p50 - bare,
            Judged::Times => self.p50 / bare,
        }
    }

    /// Whether the budget is met; a figure that could not be had is not.
    pub(crate) fn is_met(&self) -> bool {
        self.budget.is_none_or(|budget| match self.judged {
            Judged::AtLeast => self.value() >= budget,
            _ => self.value() <= budget,
        })
    }

    /// For people; `before` is what was judged in an earlier run.
    pub(crate) fn line(&self, before: Option<f64>) -> String {
        let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), short);
        let unit = if self.judged == Judged::Times { "x" } else { &self.unit };
        let before = before.map_or_else(String::new, |before| {
            if before == 0.0 {
                String::new()
            } else {
                format!("{:+.0} %", (self.value() / before - 1.0) * 100.0)
            }
        });
        format!(
            "{:44} {:>9} {:>12} {:>12} {:>13} {:>13} {before:>8}{}",
            self.what,
            format!("{} {}", short(self.p50), self.unit),
            number(self.p99),
            number(self.bare.map(|bare| self.p50 / bare)),
            format!("{} {unit}", short(self.value())),
            self.budget.map_or_else(
                || "on a GPU".to_owned(),
                |budget| {
                    let least = if self.judged == Judged::AtLeast { ">= " } else { "" };
                    format!("{least}{} {unit}", short(budget))
                }
            ),
            if self.is_met() { "" } else { "  MISSED" }
        )
    }
}

/// Three digits of it, or as many as it has before the point.
fn short(value: f64) -> String {
    let places = if value.abs() >= 100.0 {
        0
    } else if value.abs() >= 1.0 {
        2
    } else {
        3
    };
    format!("{value:.places$}")
}

/// The value at this share of the sorted values.
pub(crate) fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted
        .get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(judged: Judged, budget: f64) -> Figure {
        Figure {
            what: "a call".into(),
            unit: "ns".into(),
            p50: 30.0,
            p99: Some(90.0),
            bare: Some(20.0),
            judged,
            budget: Some(budget),
        }
    }

    #[test]
    fn each_budget_is_about_its_own_number() {
        for (judged, value) in [
            (Judged::Median, 30.0),
            (Judged::Percentile, 90.0),
            (Judged::Over, 10.0),
            (Judged::Times, 1.5),
            (Judged::AtLeast, 30.0),
        ] {
            assert!((figure(judged, 0.0).value() - value).abs() < 1e-9, "{judged:?}");
        }
        assert!(figure(Judged::Times, 1.5).is_met() && !figure(Judged::Times, 1.4).is_met());
        assert!(figure(Judged::AtLeast, 30.0).is_met() && !figure(Judged::AtLeast, 31.0).is_met());
        let unknown = Figure { bare: None, ..figure(Judged::Times, 1.5) };
        assert!(!unknown.is_met(), "what could not be compared met its budget");
        assert!(Figure { budget: None, ..unknown }.is_met());
    }

    #[test]
    fn a_missed_budget_and_a_change_are_seen_in_the_line() {
        let line = figure(Judged::Times, 1.2).line(Some(1.0));
        assert!(line.contains("MISSED") && line.contains("+50 %"), "{line}");
        assert!(!figure(Judged::Times, 2.0).line(None).contains("MISSED"));
    }
}
