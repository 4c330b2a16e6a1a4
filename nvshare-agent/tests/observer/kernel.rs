//! Loading, attaching, detaching.

#![expect(unsafe_code, reason = "a thread becomes another user")]

use std::path::Path;
use std::time::Duration;

use nvshare_agent::observer::{Library, Observer, Options, SCAN_EVERY};
use nvshare_agent_core::observation::{Seen, What};
use nvshare_common::probe::{Call, PROBES};

use crate::client::Client;
use crate::fake::Fake;
use crate::own::Own;
use crate::seen::{last_health, named, observe, observe_with, of};

#[test]
fn the_kernel_verifies_the_programs_and_every_function_gets_a_cheap_probe() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let health = seen.health();
    let [attachment] = &health.attachments[..] else { panic!("{health:?}") };
    assert_eq!(attachment.functions as usize, PROBES.len());
    assert_eq!((attachment.refused.len(), &attachment.problem), (0, &None), "{attachment:?}");
    let library = nvshare_agent::observer::Library::open(&fake.path()).unwrap();
    assert!(library.points.iter().all(|point| point.emulated), "{:?}", library.points);
    assert_eq!(library.missing, [""; 0]);
}

#[test]
fn without_its_object_the_observer_says_what_to_do() {
    let (sender, told) = std::sync::mpsc::channel();
    let options =
        Options { discover: false, sample_every: 0, ..Options::new("/nonexistent/nvshare.bpf.o".into()) };
    let observer = Observer::start(options, move |batch| sender.send(batch).is_ok()).unwrap();
    let batch = told.recv().unwrap();
    let [Seen::Observer(health)] = &batch[..] else { panic!("{batch:?}") };
    assert!(!health.loaded);
    assert!(health.problems[0].contains("/nonexistent/nvshare.bpf.o"), "{health:?}");
    assert!(health.problems[0].contains("--ebpf-object"), "{health:?}");
    observer.stop();
}

#[test]
fn without_permission_the_observer_says_what_it_needs() {
    let Some(object) = nvshare_testbed::Artifacts::find().ebpf() else { return };
    // Readable by anybody, unlike perhaps the build directory.
    let fake = Fake::with(|_| false);
    let copy = fake.directory().join("nvshare.bpf.o");
    std::fs::copy(object, &copy).unwrap();
    std::fs::set_permissions(fake.directory(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let health = std::thread::spawn(move || {
        // The system call itself, not libc's function: this thread, and those it starts, become nobody; the others do not.
        let nobody = 65534;
        // SAFETY: no memory is involved.
        let done = unsafe { libc::syscall(libc::SYS_setresuid, nobody, nobody, nobody) };
        assert!(done == 0 || !nvshare_testbed::is_root());
        let (sender, told) = std::sync::mpsc::channel();
        let options = Options { sample_every: 0, ..Options::new(copy) };
        let observer = Observer::start(options, move |batch| sender.send(batch).is_ok()).unwrap();
        let batch = told.recv().unwrap();
        observer.stop();
        let [Seen::Observer(health)] = &batch[..] else { panic!("{batch:?}") };
        health.clone()
    });
    let health = health.join().unwrap();
    assert!(!health.loaded);
    assert!(health.problems[0].contains("CAP_BPF"), "{health:?}");
    assert!(health.problems[0].contains("run it as root"), "{health:?}");
}

#[test]
fn a_file_that_is_no_driver_is_refused_with_its_name() {
    let Some(seen) = observe(&[Path::new("/etc/passwd"), Path::new("/nonexistent/libcuda.so.1")]) else {
        return;
    };
    let problems = seen.health().problems;
    assert!(problems.iter().any(|problem| problem.contains("/etc/passwd")), "{problems:?}");
    assert!(problems.iter().any(|problem| problem.contains("/nonexistent/libcuda.so.1")), "{problems:?}");
}

#[test]
fn a_stopped_observer_leaves_no_breakpoint() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let library = nvshare_agent::observer::Library::open(&fake.path()).unwrap();
    assert_eq!(library.probed_at(&library.points), library.points.len());
    seen.stop();
    assert_eq!(library.probed_at(&library.points), 0);
}

#[test]
fn probes_that_are_attached_one_by_one_count_as_exactly() {
    // Few functions: such a probe takes 0.1 s to detach.
    let fake = Fake::with(|name| ["cuLaunchKernel", "cuMemAlloc_v2"].contains(&name));
    let libraries = vec![fake.path()];
    let single = |object| Options {
        libraries,
        discover: false,
        sample_every: 1,
        single: true,
        ..Options::new(object)
    };
    let Some(seen) = observe_with(single) else { return };
    assert_eq!(seen.health().attachments[0].means, "single");
    let mut client = Client::start(&fake.path());
    client.run("call cuLaunchKernel 1000 2").run("alloc 4096");
    let pid = client.pid();
    client.end();
    let counts = seen.counts_of_dead(pid);
    assert_eq!(named(&counts.application), [("alloc", 1), ("launch", 2000)].into());
    let allocated = |what: &What| matches!(what, What::Allocated(_, range) if range.bytes.0 == 4096);
    assert!(of(&seen.all(), pid).any(allocated), "its return was followed");
}

#[test]
fn a_library_is_found_within_moments_of_being_mapped() {
    // Everybody is observed here: a cgroup of its own has its own share of the observer.
    let node = Own::new();
    let discover = |object| Options { sample_every: 0, ..Options::new(object) };
    let Some(seen) = observe_with(discover) else { return };
    let fake = Fake::new();
    let mut client = node.client(&fake.path());
    let name = fake.path().display().to_string();
    seen.wait("the attachment", |told| {
        told.iter().rev().find_map(|seen| match seen {
            Seen::Observer(health) => {
                health.attachments.iter().any(|attachment| attachment.path.ends_with(&name)).then_some(())
            }
            Seen::Process(_) => None,
        })
    });
    client.run("call cuLaunchKernel 100 1");
    seen.wait_for_count(client.pid(), Call::Launch, 100);
    client.end();
}

#[test]
fn a_library_in_use_before_the_observer_starts_is_found() {
    // Everybody is observed here: a cgroup of its own has its own share of the observer.
    let node = Own::new();
    let fake = Fake::new();
    let mut client = node.client(&fake.path());
    client.run("call cuLaunchKernel 5 1");
    let discover = |object| Options { sample_every: 0, ..Options::new(object) };
    let Some(seen) = observe_with(discover) else { return };
    client.run("call cuLaunchKernel 7 1");
    seen.wait_for_count(client.pid(), Call::Launch, 7);
    client.kill();
}

#[test]
fn an_overlay_of_an_observed_file_is_not_observed_twice() {
    let fake = Fake::new();
    let Some(_overlay) = overlay_over(&fake) else { return };
    let at = |name: &str| fake.directory().join(name);
    let Some(seen) = observe(&[&at("lower/libcuda.so.1"), &at("merged/libcuda.so.1")]) else { return };
    let mut client = Client::start(&at("merged/libcuda.so.1"));
    client.run("call cuMemFree_v2 1000 2");
    let pid = client.pid();
    client.end();
    assert_eq!(seen.counts_of_dead(pid).application[Call::Free as usize], 2000);
}

#[test]
fn calls_through_an_overlay_are_counted_once_also_where_a_probe_had_to_go() {
    let node = Own::new();
    let fake = Fake::new();
    let Some(_overlay) = overlay_over(&fake) else { return };
    let [lower, merged] = ["lower", "merged"].map(|name| fake.directory().join(name).join("libcuda.so.1"));
    let place = Library::open(&lower).unwrap();
    let place = place.points.iter().find(|point| point.symbol == "cuMemFree_v2").unwrap().offset;
    let mut patched = node.client(&lower);
    patched.run(&format!("patch {place}"));
    let often = |object| Options {
        libraries: vec![lower.clone()],
        sample_every: 0,
        scan_every: Duration::from_millis(200),
        ..Options::new(object)
    };
    let Some(seen) = node.observe(often) else { return };
    let mut client = node.client(&merged);
    // Both names are known, and looked at more than once.
    std::thread::sleep(Duration::from_millis(1500));
    client.run("call cuMemUnmap 1000 2").run("call cuMemFree_v2 10 1");
    let pid = client.pid();
    client.end();
    let counts = seen.counts_of_dead(pid).application;
    assert_eq!((counts[Call::Unmap as usize], counts[Call::Free as usize]), (2000, 0));
    patched.end();
}

#[test]
fn what_another_observer_had_probed_is_observed_when_that_one_is_gone() {
    let fake = Fake::new();
    let copy = fake.copy("copy");
    let Some(other) = observe(&[&fake.path(), &copy]) else { return };
    let Some(seen) = observe(&[&fake.path(), &copy]) else { return };
    let counted = |told: &[Seen], counted: bool| {
        let health = last_health(told)?;
        let file = health.attachments.iter().find(|file| file.path == copy.display().to_string())?;
        // What is taken for another file has no counts of its own.
        (file.places.contains(" - hits") != counted).then_some(())
    };
    seen.wait("the copy is taken for the other one", |told| counted(told, false));
    other.stop();
    // Well before the next look at all processes. Nobody uses it yet: observers of other tests would find it in use.
    const { assert!(SCAN_EVERY.as_secs() > 20) };
    seen.wait("the copy is observed", |told| counted(told, true));
    let mut client = Client::start(&copy);
    client.run("call cuMemUnmap 3 1");
    seen.wait_for_count(client.pid(), Call::Unmap, 3);
    client.end();
}

/// What `fake` holds, moved to `lower/`, and once more under `merged/`, until it is dropped.
fn overlay_over(fake: &Fake) -> Option<Unmount> {
    let at = |name: &str| fake.directory().join(name);
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::rename(fake.path(), at("lower/libcuda.so.1")).unwrap();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let mounted = std::process::Command::new("mount")
        .args(["-t", "overlay", "overlay", "-o", &options])
        .arg(at("merged"))
        .output();
    if !mounted.is_ok_and(|done| done.status.success()) {
        eprintln!("SKIPPED: no overlay can be mounted here");
        return None;
    }
    Some(Unmount(at("merged")))
}

struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
