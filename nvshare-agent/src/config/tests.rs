//! What a command line, the environment and a file say together.

use std::time::Duration;

use nvshare_agent_core::settings::Settings;
use nvshare_common::bytes::Bytes;

use super::*;

fn run(flags: &[&str]) -> Result<Config, String> {
    let line = ["nvshare-agent"].iter().chain(flags);
    let cli = Cli::try_parse_from(line).map_err(|error| error.to_string())?;
    let config = match cli.command {
        None => cli.config,
        Some(Command::Run(config)) => *config,
        Some(other) => return Err(format!("{other:?} does not run the agent")),
    };
    config.check().map_err(|error| error.to_string())?;
    Ok(config)
}

#[test]
fn the_command_line_is_consistent() {
    use clap::CommandFactory;
    Cli::command().debug_assert();
}

#[test]
fn flags_work_with_and_without_the_run_command() {
    assert_eq!(run(&[]).unwrap().http.listen.port(), 9430);
    assert_eq!(run(&["--capacity", "16G"]).unwrap().conductor.capacity, Some(Bytes(16 << 30)));
    assert_eq!(
        run(&["run", "--lease-floor=200ms"]).unwrap().conductor.lease_floor,
        Duration::from_millis(200)
    );
    let several = run(&["--libcuda", "/a", "--libcuda", "/b"]).unwrap().observer.libcuda;
    assert_eq!(several, [PathBuf::from("/a"), PathBuf::from("/b")]);
}

#[test]
fn defaults_of_the_flags_and_of_the_settings_agree() {
    let settings = run(&[]).unwrap().conductor.settings();
    assert!(settings.host_memory > Bytes::MIB, "{settings:?}");
    assert_eq!(settings, Settings { host_memory: settings.host_memory, ..Settings::default() });
}

#[test]
fn a_value_that_makes_no_sense_is_refused_by_flag_value_and_expected_form() {
    let refused = [
        (&["--capacity", "16X"][..], "--capacity", "16X", "512M"),
        (&["--capacity", "0"], "--capacity", "'0'", "more than 0"),
        (&["--lease-floor", "200"], "--lease-floor", "200", "200ms"),
        (&["--lease-factor", "0"], "--lease-factor", "'0'", "from 1 to 10000"),
        (&["--listen", "9430"], "--listen", "9430", "0.0.0.0:9430"),
        (&["--socket", "agent.sock"], "--socket", "agent.sock", "absolute path"),
        (&["--node-name", "Node 1"], "--node-name", "Node 1", "spec.nodeName"),
        (&["--kube-api", "localhost"], "--kube-api", "localhost", "http://127.0.0.1:8001"),
        (&["--pod-resources", "kubelet.sock"], "--pod-resources", "kubelet.sock", "absolute path"),
        (&["--log-format", "xml"], "--log-format", "xml", "json"),
        (&["--shares", "0"], "--shares", "'0'", "1..=1000"),
        (&["--device-plugin", "maybe"], "--device-plugin", "maybe", "auto"),
        (&["--kubelet-dir", "kubelet"], "--kubelet-dir", "kubelet", "absolute path"),
        (&["--preload", "magic"], "--preload", "magic", "ld-so-preload"),
        (&["--log", "info,=="], "--log", "info,==", "warn"),
        (&["run", "--host-memory", "lots"], "--host-memory", "lots", "16G"),
        (&["--lease-floor", "2s", "--lease-ceiling", "1s"], "--lease-floor", "2s", "floor <= ceiling"),
        (&["--socket", "/run/x/a", "--admin-socket", "/run/x/b"], "--admin-socket", "/run/x/b", "directory"),
        (
            &["--socket", "/run/x/a", "--admin-socket", "/run/x/admin/b"],
            "--admin-socket",
            "/run/x/admin/b",
            "directory",
        ),
        (&["--capacity", "1G", "--reserve", "1G"], "--reserve", "1 GiB", "reserve < capacity"),
    ];
    for (flags, flag, value, expected) in refused {
        let error = run(flags).unwrap_err();
        for part in [flag, value, expected] {
            assert!(error.contains(part), "{flags:?} says nothing of {part}: {error}");
        }
    }
}
