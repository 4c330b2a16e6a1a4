//! Programs that put code of their own over the driver's functions live on, whoever comes first, and the probes are where
//! nobody looks; where somebody does, they go.

use std::time::Duration;

use nvshare_agent::observer::{Library, Options};
use nvshare_common::probe::Call;

use crate::client::Client;
use crate::fake::Fake;
use crate::own::Own;
use crate::seen::{Observing, last_health, observe};

/// A function that communication libraries hook, and one that nobody does.
const HOOKED: &str = "cuMemFree_v2";

#[test]
fn the_beginnings_of_functions_stay_as_they_are_in_the_file() {
    let fake = Fake::new();
    let library = Library::open(&fake.path()).unwrap();
    assert!(library.points.iter().all(|point| point.behind), "{:?}", library.points);
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    client.run("compare").run(&format!("call {HOOKED} 3 1"));
    seen.wait_for_count(client.pid(), Call::Free, 3);
    client.end();
}

#[test]
fn a_process_that_hooked_a_function_before_the_observer_came_lives_on() {
    let fake = Fake::new();
    let mut client = Client::start(&fake.path());
    client.run(&format!("hook {HOOKED}"));
    let Some(seen) = observe(&[&fake.path()]) else { return };
    client.run(&format!("call {HOOKED} 5 2")).run("call cuMemUnmap 4 1").run(&format!("call {HOOKED} 5 1"));
    // What its hook does instead is not seen; everything else is.
    seen.wait_for_count(client.pid(), Call::Unmap, 4);
    seen.wait_for_count(client.pid(), Call::Free, 0);
    client.end();
}

#[test]
fn a_process_that_hooks_a_function_under_the_observers_eyes_lives_on() {
    let fake = Fake::new();
    let Some(seen) = observe(&[&fake.path()]) else { return };
    let mut client = Client::start(&fake.path());
    client.run(&format!("call {HOOKED} 7 1")).run(&format!("hook {HOOKED}"));
    client.run(&format!("call {HOOKED} 5 2")).run("call cuMemUnmap 4 1");
    seen.wait_for_count(client.pid(), Call::Unmap, 4);
    seen.wait_for_count(client.pid(), Call::Free, 7);
    client.end();
}

fn look_often(node: &Own) -> Option<Observing> {
    node.observe(|object| Options {
        sample_every: 0,
        scan_every: Duration::from_millis(200),
        ..Options::new(object)
    })
}

/// Waits until what is refused of the library is this.
fn wait_for_refused(seen: &Observing, fake: &Fake, expected: usize) {
    let path = fake.path().display().to_string();
    seen.wait(&format!("{expected} refused functions"), |told| {
        let health = last_health(told)?;
        let file = health.attachments.iter().find(|file| file.path.ends_with(&path))?;
        let named = file.refused.iter().all(|why| why.contains(HOOKED) && why.contains("other code"));
        (file.refused.len() == expected && named).then_some(())
    });
    // A child of another test's, on its way to another program, has the links of before until it is there: till then both count.
    std::thread::sleep(Duration::from_millis(500));
}

#[test]
fn where_a_process_has_other_code_there_is_no_probe_while_it_lives() {
    let node = Own::new();
    let fake = Fake::new();
    let library = Library::open(&fake.path()).unwrap();
    let place = library.points.iter().find(|point| point.symbol == HOOKED).unwrap().offset;
    let (mut patched, mut clean) = (node.client(&fake.path()), node.client(&fake.path()));
    patched.run(&format!("patch {place}"));
    let Some(seen) = look_often(&node) else { return };
    wait_for_refused(&seen, &fake, 1);
    for client in [&mut patched, &mut clean] {
        client.run(&format!("call {HOOKED} 100 2")).run("call cuMemUnmap 6 1");
        seen.wait_for_count(client.pid(), Call::Unmap, 6);
        seen.wait_for_count(client.pid(), Call::Free, 0);
    }
    patched.end();
    wait_for_refused(&seen, &fake, 0);
    clean.run(&format!("call {HOOKED} 9 1"));
    seen.wait_for_count(clean.pid(), Call::Free, 9);
    clean.end();
}

#[test]
fn the_probe_goes_when_a_process_puts_other_code_there() {
    let node = Own::new();
    let fake = Fake::new();
    let library = Library::open(&fake.path()).unwrap();
    let place = library.points.iter().find(|point| point.symbol == HOOKED).unwrap().offset;
    let mut client = node.client(&fake.path());
    let Some(seen) = look_often(&node) else { return };
    client.run(&format!("call {HOOKED} 8 1"));
    seen.wait_for_count(client.pid(), Call::Free, 8);
    // It calls nothing in between: the kernel has put its breakpoint over the jump again.
    client.run(&format!("patch {place}"));
    wait_for_refused(&seen, &fake, 1);
    client.run(&format!("call {HOOKED} 5 1")).run("call cuMemUnmap 6 1");
    seen.wait_for_count(client.pid(), Call::Unmap, 6);
    client.end();
}

#[test]
fn a_stranger_with_other_code_in_an_observed_file_is_spared_whatever_he_calls_it() {
    let (node, elsewhere) = (Own::new(), Own::new());
    let fake = Fake::new();
    let library = Library::open(&fake.path()).unwrap();
    let place = library.points.iter().find(|point| point.symbol == HOOKED).unwrap().offset;
    let alias = fake.directory().join("alias");
    std::fs::create_dir(&alias).unwrap();
    let alias = alias.join("libcuda.so.1");
    std::fs::hard_link(fake.path(), &alias).unwrap();
    let Some(seen) = node.observe(|object| Options {
        libraries: vec![fake.path()],
        sample_every: 0,
        scan_every: Duration::from_millis(200),
        ..Options::new(object)
    }) else {
        return;
    };
    wait_for_refused(&seen, &fake, 0);
    // The file has its probes, and nobody of the node has ever mapped it.
    let mut stranger = elsewhere.client(&alias);
    stranger.run(&format!("patch {place}"));
    wait_for_refused(&seen, &fake, 1);
    stranger.run(&format!("call {HOOKED} 5 1"));
    stranger.end();
    wait_for_refused(&seen, &fake, 0);
}
