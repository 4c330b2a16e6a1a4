//! What failed, said again at the end: a run of all tests prints tens of thousands of lines, and whoever reads the log of a
//! machine that is gone often has only its end.

use std::fmt::{Display, Formatter, Result};

/// Lines that are kept of one test's output, half from its beginning and half from its end.
const KEPT: usize = 60;

/// The failed tests of several test programs, found in what their harness prints.
#[derive(Default)]
pub(super) struct Failures {
    /// Each with its name and what it printed.
    failed: Vec<(String, Vec<String>)>,
    /// Whether the lines that come now are the last one's output.
    inside: bool,
}

impl Failures {
    /// Takes the next line of a test program's standard output.
    pub(super) fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.failed.push((name.to_owned(), Vec::new()));
            self.inside = true;
        } else if line == "failures:" || line.starts_with("test result:") {
            self.inside = false;
        } else if let (true, Some((_, output))) = (self.inside, self.failed.last_mut()) {
            output.push(line.to_owned());
        }
    }
}

impl Display for Failures {
    fn fmt(&self, to: &mut Formatter) -> Result {
        for (name, output) in &self.failed {
            writeln!(to, "---- {name}")?;
            let left_out = output.len().saturating_sub(KEPT);
            for (at, line) in output.iter().enumerate() {
                if left_out > 0 && at == KEPT / 2 {
                    writeln!(to, "[{left_out} lines]")?;
                }
                if left_out == 0 || at < KEPT / 2 || at >= KEPT / 2 + left_out {
                    writeln!(to, "{line}")?;
                }
            }
        }
        if !self.failed.is_empty() {
            writeln!(to, "failed:")?;
        }
        self.failed.iter().try_for_each(|(name, _)| writeln!(to, "    {name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        let mut failures = Failures::default();
        text.lines().for_each(|line| failures.read(line));
        failures.to_string()
    }

    #[test]
    fn what_the_harness_prints_of_failed_tests_is_said_again() {
        let text = "running 2 tests\ntest a ... FAILED\ntest b::c ... FAILED\n\nfailures:\n\n---- a stdout ----\nwhy\n\
            ---- b::c stdout ----\nnot equal\n  left: 1\n\nfailures:\n    a\n    b::c\n\ntest result: FAILED. 0 passed\n\
            running 1 test\ntest fine ... ok\n";
        let told = "---- a\nwhy\n---- b::c\nnot equal\n  left: 1\n\nfailed:\n    a\n    b::c\n";
        assert_eq!(read(text), told);
        assert_eq!(read("running 1 test\ntest fine ... ok\n\ntest result: ok. 1 passed\n"), "");
    }

    #[test]
    fn of_a_long_output_both_ends_are_said() {
        let lines: Vec<String> = (0..1000).map(|line| format!("line {line}")).collect();
        let told = read(&format!("---- a stdout ----\n{}", lines.join("\n")));
        assert!(
            told.starts_with("---- a\nline 0\n") && told.contains("line 29\n[940 lines]\nline 970\n"),
            "{told}"
        );
        assert!(told.ends_with("line 999\nfailed:\n    a\n"), "{told}");
    }
}
