//! The result: one JSON object, or a table.

use std::fmt;

use serde::Serialize;

use super::Mode;

/// The whole demo. The fields are what `--json` prints; docs/demo.md says what each one counts.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) simulated: bool,
    pub(crate) card_bytes: u64,
    pub(crate) processes: u64,
    pub(crate) bytes_each: u64,
    pub(crate) link_bytes_per_second: u64,
    pub(crate) runs: Vec<Run>,
}

/// One mode.
#[derive(Serialize)]
pub(crate) struct Run {
    pub(crate) mode: Mode,
    pub(crate) seconds: f64,
    pub(crate) slowest_first_response_seconds: f64,
    pub(crate) bytes_moved: Option<u64>,
    pub(crate) switches: u64,
    pub(crate) switch_seconds_median: Option<f64>,
    pub(crate) switch_over_link: Option<f64>,
    /// Only under nvshare: how much of it the work already submitted still ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) drain_seconds_median: Option<f64>,
    pub(crate) data_errors: u64,
    pub(crate) events_expected: u64,
    pub(crate) events_seen: u64,
    pub(crate) events_lost: u64,
    /// Only under nvshare: the events by who made the calls, and by call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) events: Option<Events>,
}

/// Driver calls on probed functions: as the shims counted them, and as the uprobes did.
#[derive(Serialize, Default)]
pub(crate) struct Events {
    pub(crate) application: Vec<Count>,
    pub(crate) engine: Vec<Count>,
}

/// One kind of call.
#[derive(Serialize)]
pub(crate) struct Count {
    pub(crate) call: String,
    pub(crate) expected: u64,
    pub(crate) seen: u64,
}

/// A line of the table: its name, and what stands in the column of a run.
type Line = (&'static str, fn(&Run) -> Option<String>);

impl Report {
    pub(crate) fn data_errors(&self) -> u64 {
        self.runs.iter().map(|run| run.data_errors).sum()
    }

    /// The run in this mode.
    pub(crate) fn run(&self, mode: Mode) -> Option<&Run> {
        self.runs.iter().find(|run| run.mode == mode)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} processes of {} each on {} card of {}, link {:.2} GB/s each way",
            self.processes,
            size(self.bytes_each),
            if self.simulated { "a simulated" } else { "a" },
            size(self.card_bytes),
            self.link_bytes_per_second as f64 / 1e9
        )?;
        let cell = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        let lines: [Line; 10] = [
            ("total time", |run| Some(format!("{:.1} s", run.seconds))),
            ("slowest first response", |run| Some(format!("{:.2} s", run.slowest_first_response_seconds))),
            ("bytes moved", |run| run.bytes_moved.map(size)),
            ("switches", |run| Some(run.switches.to_string())),
            ("time per switch (median)", |run| run.switch_seconds_median.map(|time| format!("{time:.3} s"))),
            ("... over the link's time", |run| run.switch_over_link.map(|ratio| format!("{ratio:.2}"))),
            ("data errors", |run| Some(run.data_errors.to_string())),
            ("driver calls by the shims", |run| run.events.as_ref().map(|_| run.events_expected.to_string())),
            ("... seen by uprobes", |run| run.events.as_ref().map(|_| run.events_seen.to_string())),
            ("... lost", |run| run.events.as_ref().map(|_| run.events_lost.to_string())),
        ];
        write!(f, "\n{:28}", "")?;
        for run in &self.runs {
            write!(f, "{:>20}", run.mode.name())?;
        }
        for (name, value) in lines {
            write!(f, "\n{name:28}")?;
            for run in &self.runs {
                write!(f, "{:>20}", cell(value(run)))?;
            }
        }
        Ok(())
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes >= 1 << 30 => format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30)),
        _ => format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20)),
    }
}
