//! What the commands say of themselves.

use crate::home::{agent, text};

#[test]
fn help_is_no_error_and_documents_the_environment() {
    let output = agent().arg("--help").output().unwrap();
    assert!(output.status.success());
    let help = text(&output.stdout);
    for part in ["NVSHARE_AGENT_CAPACITY", "--lease-factor", "status", "top", "set", "[default: 500ms]"] {
        assert!(help.contains(part), "--help says nothing of {part}");
    }
}

#[test]
fn each_command_that_asks_the_agent_explains_itself_with_examples_and_exit_statuses() {
    for words in [
        &["status", "--help"][..],
        &["top", "--help"],
        &["probes", "--help"],
        &["swap", "--help"],
        &["swap", "out", "--help"],
        &["swap", "in", "--help"],
        &["pin", "--help"],
        &["unpin", "--help"],
        &["set", "--help"],
        &["set", "lease", "--help"],
        &["set", "priority", "--help"],
        &["set", "weight", "--help"],
        &["set", "limit", "--help"],
    ] {
        let output = agent().args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        let help = text(&output.stdout);
        for part in ["Examples:", "  nvshare-agent ", "2 no such client", "3 the agent cannot be"] {
            assert!(help.contains(part), "{words:?} says nothing of {part}: {help}");
        }
    }
}

#[test]
fn each_command_that_works_by_itself_explains_itself_with_examples_and_exit_statuses() {
    for (command, failed) in
        [("run", "1 cannot run or failed"), ("config", "1 failed"), ("install-shim", "1 failed")]
    {
        let output = agent().args([command, "--help"]).output().unwrap();
        assert!(output.status.success(), "{command}");
        let help = text(&output.stdout);
        let example = format!("  nvshare-agent {command}");
        for part in ["Examples:", &example, "Exit status: 0 ", failed, "64 the command line"] {
            assert!(help.contains(part), "{command} says nothing of {part}: {help}");
        }
    }
}
