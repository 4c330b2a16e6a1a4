//! Libraries that are replaced, written to, or brought by the dozen.

use std::time::Duration;

use nvshare_agent::observer::Options;
use nvshare_agent_core::observation::{Attachment, Seen};
use nvshare_common::probe::Call;

use crate::fake::Fake;
use crate::own::Own;
use crate::seen::Observing;

/// All processes are looked at this often here; what is not used for two and a half looks is let go.
const LOOK: Duration = Duration::from_millis(200);

fn look_often(node: &Own) -> Option<Observing> {
    node.observe(|object| Options { sample_every: 0, scan_every: LOOK, ..Options::new(object) })
}

/// Waits until the file is in the list, or is not any more.
fn wait_for(seen: &Observing, what: &str, condition: impl Fn(&[Attachment]) -> bool) {
    seen.wait(what, |told| {
        let health = told.iter().rev().find_map(|seen| match seen {
            Seen::Observer(health) => Some(health),
            Seen::Process(_) => None,
        })?;
        condition(&health.attachments).then_some(())
    });
}

fn named(fake: &Fake) -> impl Fn(&Attachment) -> bool {
    let path = fake.path().display().to_string();
    move |file| file.path.contains(&path)
}

#[test]
fn a_program_is_observed_after_its_library_was_replaced() {
    let node = Own::new();
    let fake = Fake::new();
    let Some(seen) = look_often(&node) else { return };
    let mut client = node.client(&fake.path());
    wait_for(&seen, "the library", |files| files.iter().any(named(&fake)));
    client.run("call cuLaunchKernel 3 1");
    seen.wait_for_count(client.pid(), Call::Launch, 3);
    let new = fake.copy("new");
    std::fs::rename(new, fake.path()).unwrap();
    // Nothing but time may make the observer let go.
    std::thread::sleep(8 * LOOK);
    client.run("call cuLaunchKernel 7 1");
    seen.wait_for_count(client.pid(), Call::Launch, 10);
    client.end();
    // Nobody uses it any more: now it goes.
    wait_for(&seen, "the end of it", |files| !files.iter().any(named(&fake)));
}

#[test]
fn a_library_that_was_replaced_before_the_observer_came_is_found() {
    let node = Own::new();
    let fake = Fake::new();
    let mut client = node.client(&fake.path());
    let new = fake.copy("new");
    std::fs::rename(new, fake.path()).unwrap();
    let Some(seen) = look_often(&node) else { return };
    client.run("call cuLaunchKernel 7 1");
    seen.wait_for_count(client.pid(), Call::Launch, 7);
    client.end();
}

#[test]
fn a_library_that_is_written_to_loses_its_probes_at_once() {
    let node = Own::new();
    let fake = Fake::new();
    let Some(seen) = look_often(&node) else { return };
    let client = node.client(&fake.path());
    wait_for(&seen, "the library", |files| files.iter().any(named(&fake)));
    client.end();
    // Over it, not in its place: the same inode with other contents.
    let other = Fake::with(|name| name == "cuMemUnmap");
    std::fs::write(fake.path(), std::fs::read(other.path()).unwrap()).unwrap();
    wait_for(&seen, "the end of it", |files| !files.iter().any(named(&fake)));
    let mut client = node.client(&fake.path());
    wait_for(&seen, "the new contents", |files| {
        files.iter().any(|file| named(&fake)(file) && file.functions == 1)
    });
    client.run("call cuMemUnmap 4 1");
    seen.wait_for_count(client.pid(), Call::Unmap, 4);
    client.end();
}

#[test]
fn a_process_with_very_many_libraries_does_not_keep_others_from_being_observed() {
    let node = Own::new();
    let fake = Fake::with(|name| name == "cuMemUnmap");
    let Some(seen) = look_often(&node) else { return };
    let mut many = node.client(&fake.path());
    for number in 0..40 {
        many.run(&format!("open {}", fake.copy(&format!("copy{number}")).display()));
    }
    let late = Fake::with(|name| name == "cuMemMap");
    let mut client = node.client(&late.path());
    wait_for(&seen, "the late one", |files| files.iter().any(named(&late)));
    client.run("call cuMemMap 4 1");
    seen.wait_for_count(client.pid(), Call::Map, 4);
    let brought = seen.health().attachments.iter().filter(|file| named_under(file, &fake)).count();
    assert!(brought <= 8, "{brought} of one process");
    client.end();
    many.end();
}

fn named_under(file: &Attachment, fake: &Fake) -> bool {
    file.path.contains(fake.directory().to_str().unwrap())
}
