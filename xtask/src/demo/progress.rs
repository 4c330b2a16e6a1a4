//! The progress bar, on standard error; plain lines where that is no terminal.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

/// Counts iterations of all clients of all modes.
pub(crate) struct Progress {
    bar: ProgressBar,
    terminal: bool,
}

impl Progress {
    pub(crate) fn new(steps: u64) -> Progress {
        let style = ProgressStyle::with_template("{elapsed_precise} [{bar:40}] {pos}/{len} {msg}")
            .expect("a valid template")
            .progress_chars("=> ");
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(steps) } else { ProgressBar::hidden() };
        bar.set_style(style);
        Progress { bar, terminal }
    }

    /// What happens now.
    pub(crate) fn phase(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        if !self.terminal {
            eprintln!("{what}");
        }
    }

    /// One iteration of one client is done.
    pub(crate) fn step(&self) {
        self.bar.inc(1);
    }

    /// A line that stays.
    pub(crate) fn say(&self, what: &str) {
        self.bar.suspend(|| eprintln!("{what}"));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
