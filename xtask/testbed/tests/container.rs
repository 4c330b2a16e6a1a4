//! Containers of tests are real ones, and nothing of them stays.

use std::path::Path;
use std::time::Duration;

use nvshare_testbed::{ContainerBuilder, containers_work, wait_for};

fn shell(script: &str) -> ContainerBuilder {
    ContainerBuilder::new(["/bin/sh", "-c", script])
}

fn said(container: ContainerBuilder) -> String {
    let mut container = container.start();
    assert!(container.end().success(), "{}", container.errors());
    container.output().trim().to_owned()
}

#[test]
fn a_container_sees_only_its_own_processes_and_network_and_may_nothing() {
    if !containers_work() {
        return;
    }
    let script =
        "echo $$ $(ls /sys/class/net) $(grep CapEff /proc/self/status) $A; test ! -e /home || exit 9";
    assert_eq!(said(shell(script).env("A", "1").env("A", "2")), "1 lo CapEff: 0000000000000000 2");
}

#[test]
fn a_container_gets_what_was_asked_for() {
    if !containers_work() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("file"), "here").unwrap();
    let mine = std::process::id();
    let script = format!("cat /data/file && touch /data/new && ! touch /fixed/new && test -d /proc/{mine}");
    let container = shell(&script)
        .mount(directory.path(), "/data")
        .mount_read_only(directory.path(), "/fixed")
        .capabilities(&["BPF"])
        .host_pid();
    assert_eq!(said(container), "here");
    assert!(directory.path().join("new").exists());
    let capabilities = said(shell("grep CapEff /proc/self/status").capabilities(&["BPF", "SYS_ADMIN"]));
    assert_eq!(capabilities, "CapEff:\t0000008000200000");
}

#[test]
fn a_container_ends_with_its_value() {
    if !containers_work() {
        return;
    }
    let container = shell("sleep 1000").start();
    let process = format!("/proc/{}", container.id());
    assert!(Path::new(&process).exists());
    drop(container);
    wait_for("its process is gone", Duration::from_secs(10), || {
        (!Path::new(&process).exists()).then_some(())
    });
}

/// Not a test: what the next one kills. It says where its container is and waits.
#[test]
#[ignore = "killed by another test"]
fn a_test_that_is_killed() {
    let Some(report) = std::env::var_os("NVSHARE_TEST_REPORT") else { return };
    let container = shell("sleep 1000").start();
    std::fs::write(report, container.id().to_string()).unwrap();
    std::thread::sleep(Duration::from_mins(10));
}

#[test]
fn a_container_ends_with_the_process_that_made_it_even_when_that_is_killed() {
    if !containers_work() {
        return;
    }
    let report = tempfile::NamedTempFile::new().unwrap();
    let mut maker = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "a_test_that_is_killed"])
        .env("NVSHARE_TEST_REPORT", report.path())
        .spawn()
        .unwrap();
    let id = wait_for("the container starts", Duration::from_secs(20), || {
        std::fs::read_to_string(report.path()).unwrap().parse::<u32>().ok()
    });
    let its_cgroups = format!("nvshare-test-{}-*", maker.id());
    maker.kill().unwrap();
    maker.wait().unwrap();
    let process = format!("/proc/{id}");
    wait_for("its process is gone", Duration::from_secs(10), || {
        (!Path::new(&process).exists()).then_some(())
    });
    wait_for("its cgroups are gone", Duration::from_secs(10), || {
        let find = ["/sys/fs/cgroup", "-maxdepth", "2", "-name", &its_cgroups];
        let left = std::process::Command::new("find").args(find).output().unwrap();
        left.stdout.is_empty().then_some(())
    });
}
