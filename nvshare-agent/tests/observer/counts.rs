//! Observing calls are the calls made: exactly, by every thread, of every process.

#![expect(unsafe_code, reason = "a client is traced")]

use nvshare_agent_core::observation::{Observation, Seen, What};
use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::event::Loss;
use nvshare_common::probe::{Call, PROBES};

use crate::client::Client;
use crate::fake::{ADDRESS, Fake};
use crate::seen::{last_activity, last_counts, named, observe, observed, of};

#[test]
fn every_call_of_every_function_is_counted_once() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    let mut expected = [0; Call::COUNT];
    for (index, probe) in PROBES.iter().enumerate() {
        let times = 10 + index as u64;
        client.run(&format!("call {} {times} 1", probe.symbol));
        expected[probe.call as usize] += times;
    }
    let pid = client.pid();
    client.end();
    let counts = seen.counts_of_dead(pid);
    assert_eq!(named(&counts.application), named(&expected));
    assert_eq!(named(&counts.engine), named(&[0; Call::COUNT]));
    let health = seen.health();
    assert_eq!((health.lost, health.unattributed), (0, 0));
    seen.wait("the hits of each place", |told| {
        let health = told.iter().rev().find_map(|seen| match seen {
            Seen::Observer(health) => Some(health),
            Seen::Process(_) => None,
        })?;
        let places = &health.attachments[0].places;
        let all = PROBES.iter().enumerate().all(|(index, probe)| {
            let hits = format!(", {} hits, ", 10 + index);
            places
                .lines()
                .any(|line| line.starts_with(&format!("{} +", probe.symbol)) && line.contains(&hits))
        });
        all.then_some(())
    });
}

#[test]
fn threads_of_several_processes_are_counted_exactly_and_the_engines_apart() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let clients: Vec<u32> = std::thread::scope(|scope| {
        let runs: Vec<_> = (0..4)
            .map(|number| {
                let path = fake.path();
                scope.spawn(move || {
                    let mut client = Client::start(&path);
                    client
                        .run("call cuLaunchKernel 20000 4")
                        .run("call cuMemCreate 500 3 engine")
                        .run("call cuMemCreate 100 2")
                        .run(&format!("call cuMemMap {} 2 engine", 100 + number));
                    let pid = client.pid();
                    if number % 2 == 0 {
                        client.end();
                    } else {
                        client.kill();
                    }
                    pid
                })
            })
            .collect();
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    for (number, pid) in clients.into_iter().enumerate() {
        let counts = seen.counts_of_dead(pid);
        assert_eq!(named(&counts.application), [("create", 200), ("launch", 80_000)].into());
        assert_eq!(named(&counts.engine), [("create", 1500), ("map", 2 * (100 + number as u64))].into());
    }
    // So many at once, each launch with its parameters, are more records than one container may write.
    let health = seen.health();
    assert_eq!(health.lost, health.losses[Loss::Throttled as usize], "{:?}", health.losses);
    assert_eq!(health.unattributed, 0);
}

#[test]
fn records_tell_what_calls_were_about() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    client.run("alloc 4096").run("launch 12345").run("pitch 3");
    let pid = client.pid();
    client.end();
    seen.counts_of_dead(pid);
    let told: Vec<Seen> = seen.all();
    let allocated = |bytes| {
        let range = DeviceRange { start: DevicePtr(ADDRESS), bytes: Bytes(bytes) };
        of(&told, pid).any(|what| *what == What::Allocated(Call::Alloc, range))
    };
    assert!(allocated(4096), "{told:?}");
    // A pitch of 512 times a height of 3.
    assert!(allocated(1536), "{told:?}");
    let launched = of(&told, pid).find_map(|what| match what {
        What::Launched { parameters, .. } => Some(parameters),
        _ => None,
    });
    assert_eq!(launched.unwrap()[..3], [12345, 12346, 0]);
}

#[test]
fn a_process_that_replaces_its_program_begins_again_at_zero() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    let pid = client.pid();
    client.run("call cuMemFree_v2 30 1").run("exec").run("call cuMemFree_v2 4 1");
    client.end();
    assert_eq!(seen.counts_of_dead(pid).application[Call::Free as usize], 4);
    let told = seen.all();
    let replaced = told
        .iter()
        .position(|seen| matches!(seen, Seen::Process(Observation { process, what: What::Exec }) if process.pid == pid))
        .expect("the exec was told");
    let before = last_counts(&told[..replaced], pid).unwrap();
    assert_eq!(before.application[Call::Free as usize], 30);
}

#[test]
fn copies_of_a_library_are_observed_each() {
    let fake = Fake::new();
    let copy = fake.copy("copy");
    let Some(seen) = observe(&[&fake.path(), &copy]) else { return };
    for path in [fake.path(), copy] {
        let mut client = Client::start(&path);
        client.run("call cuMemUnmap 11 1");
        let pid = client.pid();
        client.end();
        assert_eq!(seen.counts_of_dead(pid).application[Call::Unmap as usize], 11);
    }
}

#[test]
fn a_flood_of_records_is_read_or_counted_as_lost_and_every_call_is_counted() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    client.run("call cuMemUnmap 100000 2");
    let pid = client.pid();
    client.end();
    assert_eq!(seen.counts_of_dead(pid).application[Call::Unmap as usize], 200_000);
    let told = seen.stop();
    let unmapped = of(&told, pid).filter(|what| matches!(what, What::Unmapped(_))).count() as u64;
    let lost: u64 = last_activity(&told, pid).unwrap().lost.iter().sum();
    assert_eq!(unmapped + lost, 200_000, "{lost} lost");
}

#[test]
fn a_call_within_a_call_is_told_apart_from_it() {
    let fake = Fake::nested();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    client.run("call cuMemCreate 50 3");
    let pid = client.pid();
    // Of one that is gone before the observer's next look nobody knows when it began: it counts as older.
    seen.wait_for_count(pid, Call::Create, 150);
    client.end();
    let counts = seen.counts_of_dead(pid);
    assert_eq!(named(&counts.application), [("alloc", 150), ("create", 150)].into());
    let told = seen.all();
    let allocated = observed(&told).filter(|seen| matches!(seen.what, What::Allocated(..))).count();
    assert_eq!(allocated, 150, "the inner ones");
    let last = last_activity(&told, pid).map(|activity| (activity.lost, activity.whole));
    assert_eq!(last, Some(([0; 4], true)), "nothing was lost of either");
}

#[test]
fn of_a_process_that_is_older_than_the_observer_it_is_said() {
    let fake = Fake::new();
    let mut client = Client::start(&fake.path());
    let Some(seen) = observe(&[&fake.path()]) else { return };
    client.run("call cuMemFree_v2 3 1");
    let pid = client.pid();
    client.end();
    seen.counts_of_dead(pid);
    let whole = |what: &What| matches!(what, What::Activity(activity) if activity.whole);
    assert!(!of(&seen.all(), pid).any(whole));
}

/// All calls of one kind, by whomever: of processes that were heard of, and nobody's.
fn all_calls(told: &[Seen], call: Call) -> u64 {
    let mut last = std::collections::HashMap::new();
    let (mut ended, mut unattributed) = (0, 0);
    for seen in told {
        let Observation { process, what } = match seen {
            Seen::Process(seen) => seen,
            Seen::Observer(health) => {
                unattributed = health.unattributed;
                continue;
            }
        };
        match what {
            What::Activity(activity) => {
                last.insert(*process, activity.counts.application[call as usize]);
            }
            // A process that was gone before it was looked at has no start, and others have its number later.
            What::Exited | What::Exec => ended += last.remove(process).unwrap_or(0),
            _ => {}
        }
    }
    last.values().sum::<u64>() + ended + unattributed
}

/// How many descriptors of processes this one has open.
fn descriptors_of_processes() -> usize {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let names = descriptors.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    names.filter(|name| name.to_string_lossy().contains("[pidfd]")).count()
}

#[test]
fn ten_thousand_short_processes_are_all_counted_and_leave_nothing_behind() {
    // More than twice as many as there are slots; or as many as one asks for.
    let asked = std::env::var("NVSHARE_SHORT_PROCESSES").ok();
    let processes: u64 =
        asked.map_or(10_000, |number| number.parse().expect("NVSHARE_SHORT_PROCESSES: a number"));
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    client.run(&format!("fork cuMemUnmap {processes}")).run("spawn 20").run("call cuMemMap 5 1");
    let pid = client.pid();
    client.end();
    // To start others by vfork is not to replace one's own program.
    assert_eq!(named(&seen.counts_of_dead(pid).application), [("map", 5)].into());
    let mut late = Client::start(&fake.path());
    late.run("call cuMemMap 7 1");
    // While it lives: its number may have been that of a short one, too.
    seen.wait_for_count(late.pid(), Call::Map, 7);
    late.end();
    // Other tests have some, one of them more than a container's slots (`groups`).
    assert!(descriptors_of_processes() < 2500, "{}", descriptors_of_processes());
    let told = seen.stop();
    assert!(!of(&told, pid).any(|what| *what == What::Exec));
    assert_eq!(all_calls(&told, Call::Unmap), processes);
}

#[test]
fn processes_that_share_their_parents_memory_are_counted_for_themselves_and_unharmed() {
    const PROCESSES: u64 = 300;
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    // Of these the return is observed too, on a stack in the parent's memory.
    client
        .run(&format!("vfork cuMemFree_v2 {PROCESSES}"))
        .run("call cuMemFree_v2 9 2")
        .run("vfork cuMemMap 1");
    let pid = client.pid();
    client.end();
    assert_eq!(named(&seen.counts_of_dead(pid).application), [("free", 18)].into());
    assert_eq!(all_calls(&seen.stop(), Call::Free), PROCESSES + 18);
}

#[test]
fn a_traced_process_is_counted_as_exactly() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    let pid = client.pid();
    let trace = |request| {
        // SAFETY: requests without memory of ours.
        let done =
            unsafe { libc::ptrace(request, pid, std::ptr::null_mut::<u8>(), std::ptr::null_mut::<u8>()) };
        assert_eq!(done, 0, "ptrace: {}", std::io::Error::last_os_error());
    };
    trace(libc::PTRACE_ATTACH);
    let mut status = 0;
    // SAFETY: a process that stops for us.
    assert_eq!(unsafe { libc::waitpid(pid as i32, &raw mut status, libc::__WALL) }, pid as i32);
    trace(libc::PTRACE_CONT);
    client.run("call cuMemFree_v2 500 1").run("call cuLaunchKernel 500 2").run("alloc 4096");
    // To stop it once more.
    nvshare_testbed::signal(pid, libc::SIGSTOP).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { libc::waitpid(pid as i32, &raw mut status, libc::__WALL) }, pid as i32);
    trace(libc::PTRACE_DETACH);
    nvshare_testbed::signal(pid, libc::SIGCONT).unwrap();
    client.run("call cuMemFree_v2 20 1");
    client.end();
    let counts = seen.counts_of_dead(pid);
    assert_eq!(named(&counts.application), [("alloc", 1), ("free", 520), ("launch", 1000)].into());
}
