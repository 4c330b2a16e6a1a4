//! The log's level, changed while the agent runs.

use std::time::Duration;

use nvshare_testbed::{Node, wait_for};

use crate::home::{Home, agent, text};

#[test]
fn the_log_says_more_and_less_at_once_when_it_is_told_to() {
    for format in ["text", "json"] {
        let node = Node::new();
        let running = node.agent(["--no-uprobes", "--log", "warn", "--log-format", format]);
        let set = |filter: &str| {
            let change = format!("log={filter}");
            agent().args(["set", &change]).arg("--admin-socket").arg(node.admin_socket()).output().unwrap()
        };
        // One that changes settings is told at info.
        let told = || running.log().matches("an administrator changed settings").count();
        let output = set("warn");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(text(&output.stdout), "log=warn; this holds until the agent restarts\n");
        assert_eq!(told(), 0, "{}", running.log());
        assert!(set("info,nvshare_agent_core=debug").status.success());
        wait_for("the change to info is told", Duration::from_secs(30), || (told() == 1).then_some(()));
        assert!(set("error").status.success());
        assert!(set("error").status.success());
        assert_eq!(told(), 1, "{}", running.log());
    }
}

#[test]
fn a_filter_that_makes_no_sense_is_refused_with_what_was_expected() {
    let home = Home::new();
    let output = home.ask("set", &["log=info,=="]);
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    let said = text(&output.stderr);
    assert!(said.contains("log") && said.contains("error, warn, info, debug, trace"), "{said}");
}
