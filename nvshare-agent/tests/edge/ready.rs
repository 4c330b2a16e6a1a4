//! Whether the agent is ready, for scripts.

use nvshare_testbed::{Artifacts, wait_for};

use crate::home::{Home, LIMIT, text};

#[test]
fn whether_the_agent_is_ready_is_an_exit_status_for_who_asks_for_it() {
    let home = Home::new();
    let unreached = home.ask("status", &["--check"]);
    assert_eq!(unreached.status.code(), Some(3));
    let _agent = home.start();
    for more in [&["--check"][..], &["--check", "--json"]] {
        let output = wait_for("NVML is reported missing", LIMIT, || {
            Some(home.ask("status", more)).filter(|output| text(&output.stderr).contains("cannot load NVML"))
        });
        assert_eq!(output.status.code(), Some(4), "{output:?}");
        assert!(text(&output.stderr).contains("not ready: devices: "), "{output:?}");
        assert!(!output.stdout.is_empty(), "what there is to see is shown all the same");
    }
    assert_eq!(home.ask("status", &[]).status.code(), Some(0));
    std::fs::copy(Artifacts::find().nvml(), home.nvml()).unwrap();
    wait_for("the agent is ready", LIMIT, || home.ask("status", &["--check"]).status.success().then_some(()));
}
