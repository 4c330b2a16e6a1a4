//! The agent's binary from outside, on a machine that has next to nothing it wants: no uprobes, no clients, and NVML
//! only where a test puts it there.

mod full;
mod help;
mod home;
mod log;
mod ready;
mod restart;
mod uid;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nvshare_testbed::{Artifacts, Client, Node, wait_for};
use serde_json::Value;

use home::{Home, LIMIT, agent, text};

#[test]
fn bad_configuration_ends_with_64_and_names_flag_value_and_expected_form() {
    let home = Home::new();
    for (flags, parts) in [
        (&["--capacity", "16X"][..], ["--capacity", "16X", "16G"]),
        (&["--lease-floor", "2m", "--lease-ceiling", "1m"], ["--lease-floor", "120s", "floor <= ceiling"]),
        (&["--stall", "soon"], ["--stall", "soon", "200ms"]),
    ] {
        let output = home.command(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}");
        let said = text(&output.stderr);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
    let output = agent().env("NVSHARE_AGENT_RESERVE", "lots").arg("run").output().unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("'lots'"));
}

#[test]
fn without_nvml_the_agent_runs_and_says_what_is_missing_everywhere() {
    let home = Home::new();
    let agent = home.start();
    let readiness = wait_for("the devices are reported missing", LIMIT, || {
        let (status, body) = agent.get("/readyz");
        (status == 503 && body.contains("cannot load NVML")).then_some(body)
    });
    assert!(readiness.contains("--nvml"), "{readiness}");
    assert_eq!(agent.get("/livez").0, 200);
    let metrics = agent.get("/metrics").1;
    assert!(metrics.contains("nvshare_part_missing{part=\"devices\"} 1"), "{metrics}");
    assert!(metrics.contains("nvshare_part_missing{part=\"uprobes\"} 0"), "{metrics}");
    let status = home.ask("status", &[]);
    assert!(text(&status.stdout).contains("missing: devices: cannot load NVML"), "{status:?}");
}

#[test]
fn without_its_ebpf_programs_the_agent_runs_and_says_so() {
    let home = Home::new();
    let agent = home.start_with(&["--ebpf-object", "/nowhere/nvshare.bpf.o"]);
    let why = wait_for("the uprobes are reported missing", LIMIT, || {
        let readiness: Value = serde_json::from_str(&agent.get("/readyz").1).unwrap();
        let missing = readiness["missing"].as_array().unwrap().clone();
        let uprobes = missing.iter().find(|missing| missing["part"] == "uprobes").cloned()?;
        uprobes["why"].as_str().filter(|why| why.contains("/nowhere")).map(str::to_owned)
    });
    assert!(why.contains("--ebpf-object"), "{why}");
    let metrics = agent.get("/metrics").1;
    assert!(metrics.contains("nvshare_part_missing{part=\"uprobes\"} 1"), "{metrics}");
    assert!(metrics.contains("nvshare_uprobes_loaded 0"), "{metrics}");
}

#[test]
fn devices_are_found_when_nvml_appears_while_the_agent_runs() {
    let home = Home::new();
    let agent = home.start();
    let missing = |missing| {
        wait_for("the devices come and go", LIMIT, || {
            (agent.get("/readyz").1.contains("cannot load NVML") == missing).then_some(())
        });
    };
    missing(true);
    std::fs::copy(Artifacts::find().nvml(), home.nvml()).unwrap();
    missing(false);
    let mut devices = wait_for("the devices are published", LIMIT, || {
        let state: Value = serde_json::from_str(&agent.get("/api/v1/state").1).unwrap();
        state["devices"].as_array().filter(|devices| devices.len() == 2).cloned()
    });
    devices.sort_by_key(|device| device["index"].as_u64());
    for (index, device) in devices.iter().enumerate() {
        assert_eq!((device["index"].as_u64(), device["total"].as_u64()), (Some(index as u64), Some(1 << 30)));
        let series =
            format!("nvshare_device_memory_bytes{{gpu=\"{index}\",UUID={}}} 1073741824\n", device["uuid"]);
        assert!(agent.get("/metrics").1.contains(&series), "no {series}");
    }
    assert_ne!(devices[0]["uuid"], devices[1]["uuid"]);
}

#[test]
fn settings_change_while_the_agent_runs_all_or_none() {
    let home = Home::new();
    let agent = home.start();
    let output = home.ask("set", &["lease-floor=200ms", "lease-factor=12"]);
    assert!(output.status.success(), "{output:?}");
    wait_for("the new settings are published", LIMIT, || {
        let state: Value = serde_json::from_str(&agent.get("/api/v1/state").1).unwrap();
        (state["settings"]["lease_floor"] == 0.2 && state["settings"]["lease_factor"] == 12.0).then_some(())
    });
    let output = home.ask("set", &["lease-factor=50", "lease-floor=2h"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("floor <= ceiling"), "{output:?}");
    let output = home.ask("status", &["--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["state"]["settings"]["lease_factor"], 12.0);
    let output = home.ask("set", &["lease", "floor=300ms", "factor=20"]);
    assert!(output.status.success(), "{output:?}");
    let output = home.ask("status", &["--json"]);
    let status: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["state"]["settings"]["lease_factor"], 20.0);
    let output = home.ask("set", &["socket=/run/x"]);
    assert_eq!(output.status.code(), Some(64));
}

#[test]
fn a_killed_agent_can_be_started_again_and_a_stopped_one_leaves_no_socket() {
    let home = Home::new();
    let mut first = home.start();
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    assert!(home.admin_socket().exists());

    let mut second = home.start();
    assert!(home.ask("status", &[]).status.success());
    let pid = rustix::process::Pid::from_child(&second.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = wait_for("the agent stops", LIMIT, || second.child.try_wait().unwrap());
    assert!(status.success(), "{status}");
    assert!(!home.admin_socket().exists());
    let output = home.ask("status", &[]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("Is the agent running"), "{output:?}");
}

#[test]
fn orders_for_nobody_end_with_2_and_without_an_agent_with_3() {
    let home = Home::new();
    let orders = [
        ("swap", &["out", "7"][..]),
        ("swap", &["in", "pid:7"]),
        ("pin", &["7"]),
        ("unpin", &["7"]),
        ("set", &["priority", "7", "high"]),
        ("set", &["weight", "7", "2"]),
        ("set", &["limit", "7", "8G"]),
        ("set", &["limit", "pid:7", "none"]),
    ];
    for (command, words) in orders {
        let output = home.ask(command, words);
        assert_eq!(output.status.code(), Some(3), "{command} {words:?}");
        assert!(text(&output.stderr).contains("Is the agent running"), "{output:?}");
    }
    let _agent = home.start();
    for (command, words) in orders {
        let output = home.ask(command, words);
        assert_eq!(output.status.code(), Some(2), "{command} {words:?}");
        let said = text(&output.stderr);
        assert!(said.contains("7: no client is connected") && output.stdout.is_empty(), "{said}");
    }
}

#[test]
fn orders_that_make_no_sense_end_with_64_and_say_what_was_expected() {
    let home = Home::new();
    for (command, words, parts) in [
        ("swap", &[][..], ["out", "in"]),
        ("swap", &["away", "7"], ["'away'", "Usage"]),
        ("swap", &["out"], ["CLIENT", "Usage"]),
        ("swap", &["out", "python"], ["'python'", "pid:1234"]),
        ("pin", &["pid:x"], ["'pid:x'", "pid:1234"]),
        ("set", &[], ["NAME=VALUE", "Usage"]),
        ("set", &["priority", "7", "urgent"], ["'urgent'", "high, normal or low"]),
        ("set", &["weight", "7", "0"], ["'0'", "0.01 to 100"]),
        ("set", &["limit", "7", "8X"], ["'8X'", "or none"]),
        ("set", &["lease", "reserve=1G"], ["'reserve=1G'", "ceiling=60s"]),
        ("set", &["lease-floor=1s", "weight", "7", "2"], ["'weight'", "NAME=VALUE"]),
    ] {
        let output = home.ask(command, words);
        assert_eq!(output.status.code(), Some(64), "{command} {words:?}: {output:?}");
        let said = text(&output.stderr);
        assert!(parts.iter().all(|part| said.contains(part)), "{command} {words:?}: {said}");
    }
}

#[test]
fn the_agent_lives_on_when_nobody_reads_its_log() {
    let home = Home::new();
    let mut agent = home.start();
    agent.log = None;
    for _ in 0..3 {
        // Each of these is a line in the log.
        assert!(home.ask("set", &["lease-floor=100ms"]).status.success());
    }
    assert_eq!(agent.get("/livez").0, 200);
}

#[test]
fn top_prints_tables_until_it_has_printed_enough() {
    let home = Home::new();
    let _agent = home.start();
    let output = home.ask("top", &["--count", "3", "--every", "10ms"]);
    assert!(output.status.success());
    assert_eq!(text(&output.stdout).matches("nvshare-agent 0.").count(), 3);
}

#[test]
fn an_agent_that_cannot_be_seen_or_reached_does_not_run() {
    let home = Home::new();
    let running = home.start();
    let address = running.address.to_string();
    let unseen = Home::new().command(&["--listen", &address]).output().unwrap();
    assert_eq!(unseen.status.code(), Some(1));
    assert!(text(&unseen.stderr).contains("--listen"), "{unseen:?}");
    let unreached = home.command(&["--listen", "127.0.0.1:0"]).output().unwrap();
    assert_eq!(unreached.status.code(), Some(1));
    let said = text(&unreached.stderr);
    assert!(said.contains("another agent") && said.contains("--socket"), "{said}");
    // The one that runs is as it was.
    assert!(home.ask("status", &[]).status.success());
    assert_eq!(running.get("/livez").0, 200);
}

#[test]
fn a_terminated_agent_has_told_its_story_and_ends_in_time_with_0_and_its_clients_go_on() {
    /// What main.rs grants itself, and a little for a busy machine.
    const BOUND: Duration = Duration::from_secs(12);
    let node = Node::builder()
        .env("NVSHARE_SIM_CARD_BYTES", "96M")
        .env("NVSHARE_SIM_LINK_BYTES_PER_SECOND", "200000000")
        .env("NVSHARE_EXTENT_BYTES", "4M")
        .env("NVSHARE_AGENT_GONE_AFTER", "1s")
        .build();
    let leases = ["--lease-floor", "200ms", "--lease-ceiling", "200ms", "--reserve", "2M"];
    let agent =
        node.agent(leases.into_iter().chain(["--log", "info,nvshare_agent_core::conductor::switches=debug"]));
    let start = |seed| {
        let flags = format!("--bytes 64M --buffers 4 --iterations 8 --seed {seed}");
        Client::start(&mut node.workload(&flags).with_shim())
    };
    let mut clients = [start(1), start(2), start(3)];
    wait_for("the clients take turns", LIMIT, || {
        (agent.state()["switches"]["count"].as_u64() >= Some(2)).then_some(())
    });
    for said in
        ["a device to share", "client connected", "they take turns", "switch client=", "drain=", "bytes_out="]
    {
        assert!(agent.log().contains(said), "the log says nothing of {said}: {}", agent.log());
    }
    // Somebody who looks at the status page and does not go away by himself.
    let mut page = TcpStream::connect(agent.address()).unwrap();
    page.set_read_timeout(Some(LIMIT)).unwrap();
    write!(page, "GET /api/v1/events HTTP/1.1\r\nHost: agent\r\n\r\n").unwrap();
    page.read_exact(&mut [0; 15]).unwrap();

    let asked = Instant::now();
    let status = agent.stop();
    assert!(status.success() && asked.elapsed() < BOUND, "{status} after {:?}", asked.elapsed());
    assert!(!node.socket().exists() && !node.admin_socket().exists());
    for client in &mut clients {
        client.succeed();
    }
    assert_eq!(node.violations(), Vec::<String>::new());
}

#[test]
fn flags_come_before_the_environment_and_the_environment_before_the_file() {
    let home = Home::new();
    let file = home.0.path().join("agent.toml");
    std::fs::write(&file, "reserve = \"128M\"\nlease-floor = \"2s\"\nstall = \"7s\"\n").unwrap();
    let config = |more: &[&str]| {
        let mut command = agent();
        command.arg("config").arg("--config").arg(&file).args(more);
        command.env("NVSHARE_AGENT_LEASE_FLOOR", "3s").env("NVSHARE_AGENT_STALL", "8s").output().unwrap()
    };
    let output = config(&["--stall", "9s", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let from_file = format!("file {}", file.display());
    for (name, value, source) in [
        ("stall", "9s", "flag"),
        ("lease-floor", "3s", "environment NVSHARE_AGENT_LEASE_FLOOR"),
        ("reserve", "128M", from_file.as_str()),
        ("lease-factor", "40", "default"),
    ] {
        assert_eq!(all[name], serde_json::json!({"value": value, "source": source}), "{name}");
    }
    assert!(text(&config(&[]).stdout).contains(&from_file));
    // `run` refuses what `config` refuses.
    std::fs::write(&file, "lease-flor = \"2s\"\n").unwrap();
    for command in ["run", "config"] {
        let output = agent().arg(command).arg("--config").arg(&file).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{command}");
        assert!(text(&output.stderr).contains("did you mean `lease-floor`"), "{output:?}");
    }
}

#[test]
fn probes_says_what_is_not_observed() {
    let home = Home::new();
    let _agent = home.start();
    let output = home.ask("probes", &[]);
    assert!(output.status.success() && text(&output.stdout).contains("nothing is observed"), "{output:?}");
    let json: Value = serde_json::from_slice(&home.ask("probes", &["--json"]).stdout).unwrap();
    assert_eq!(json["loaded"], false);
}
