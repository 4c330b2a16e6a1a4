//! What becomes of clients on devices that the agent cannot manage: they are told, wait for nothing, and are taken up as
//! soon as the device can be managed after all.

use std::time::Duration;

use nvshare_agent_core::conductor::{Command, Core};
use nvshare_agent_core::decision::Decision;
use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::{Reading, Report};
use nvshare_agent_world::{GIB, card, settings};
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};
use nvshare_common::protocol::{Held, Hello, Purpose, ToAgent, ToShim};

const BEGIN: Moment = Moment(1_000_000_000_000);
const CLIENT: Process = Process { pid: 7, start: 1 };
const SESSION: SessionId = SessionId(1);

fn after(ms: u64) -> Moment {
    BEGIN + Duration::from_millis(ms)
}

fn core() -> Core {
    let mut core = Core::new(settings());
    core.begin_granting(BEGIN);
    core
}

fn reading(device: DeviceId) -> Reading {
    Reading {
        device,
        index: u32::from(device.0[0]),
        name: "card".into(),
        total: Bytes(16 * GIB),
        used: Bytes(GIB),
        link: None,
        per_process: [(CLIENT.pid, Bytes(GIB))].into(),
    }
}

fn report(began: Moment, devices: &[DeviceId], problem: Option<&str>) -> Report {
    let devices = devices.iter().copied().map(reading).collect();
    Report { began, devices, complete: true, problem: problem.map(str::to_owned) }
}

fn hello(core: &mut Core, session: SessionId, devices: &[DeviceId], now: Moment) -> ClientId {
    let held = |device: &DeviceId| Held {
        device: *device,
        granted: Bytes(GIB),
        resident: Bytes(GIB),
        total: Bytes(GIB),
    };
    let devices = devices.iter().map(held).collect();
    let hello = Hello { release: "1".into(), running: true, bypass: false, devices, arenas: 0 };
    core.hello(CLIENT, session, &hello, now)
}

/// The devices that the client was told to use as without an agent.
fn unmanaged(commands: &[Command]) -> Vec<DeviceId> {
    let of = |command: &Command| match &command.message {
        ToShim::Unmanaged { device, why } => {
            assert!(!why.is_empty());
            Some(*device)
        }
        _ => None,
    };
    commands.iter().filter_map(of).collect()
}

#[test]
fn without_nvml_a_client_is_told_at_once_and_runs_when_it_wants_to() {
    let mut core = core();
    core.devices(&report(after(1), &[], Some("cannot load NVML")), after(2));
    let client = hello(&mut core, SESSION, &[], after(10));
    core.hear(client, SESSION, ToAgent::Met { device: card(0) }, after(11));
    assert_eq!(unmanaged(&core.terms(after(12))), [card(0)]);
    assert!(unmanaged(&core.terms(after(13))).is_empty(), "it is told once");
    // It was stopped for the sake of another device, say: nothing on that one keeps it from running again.
    let stop = Decision::Stop { client, gains: None };
    let stop = core.ledger.book(&stop, &settings(), after(13)).unwrap().message;
    let ToShim::Stop { ticket, .. } = stop else { panic!("{stop:?}") };
    core.hear(client, SESSION, ToAgent::Stopped { ticket }, after(13));
    let want = ToAgent::Want { device: card(0), total: Bytes(GIB), purpose: Purpose::Work };
    core.hear(client, SESSION, want, after(14));
    let decided = core.decide(after(15));
    assert!(decided.commands.iter().any(|command| command.message == ToShim::Run), "{decided:?}");
    assert!(core.ledger.client(client).unwrap().devices().is_empty());
}

#[test]
fn an_nvml_that_says_nothing_is_waited_for_no_longer_than_two_seconds() {
    let mut core = core();
    let client = hello(&mut core, SESSION, &[card(0)], after(0));
    assert!(unmanaged(&core.terms(after(1_900))).is_empty());
    assert_eq!(unmanaged(&core.terms(after(2_100))), [card(0)]);
    assert!(core.ledger.client(client).unwrap().devices().is_empty(), "nothing is booked there");
}

#[test]
fn a_device_that_nvml_does_not_list_is_not_managed_and_the_others_are() {
    let mut core = core();
    let client = hello(&mut core, SESSION, &[card(0)], after(0));
    core.hear(client, SESSION, ToAgent::Met { device: card(9) }, after(1));
    core.devices(&report(after(2), &[card(0), card(1)], None), after(3));
    assert_eq!(unmanaged(&core.terms(after(4))), [card(9)]);
    assert!(core.ledger.client(client).unwrap().devices().contains_key(&card(0)));
}

#[test]
fn a_card_that_is_read_no_more_is_given_up_and_taken_up_again_with_a_new_hello() {
    let mut core = core();
    let client = hello(&mut core, SESSION, &[card(0), card(1)], after(0));
    for ms in (0..5_000).step_by(100) {
        core.devices(&report(after(ms), &[card(0), card(1)], None), after(ms + 2));
        assert!(unmanaged(&core.terms(after(ms + 3))).is_empty());
    }
    core.limits();
    // The second card hangs: reports go on without it.
    let mut told = Vec::new();
    for ms in (5_000..20_000).step_by(100) {
        let mut report = report(after(ms), &[card(0)], None);
        report.complete = false;
        core.devices(&report, after(ms + 2));
        told.extend(unmanaged(&core.terms(after(ms + 3))).into_iter().map(|device| (device, ms)));
    }
    assert!(
        matches!(told[..], [(device, ms)] if device == card(1) && (14_500..16_000).contains(&ms)),
        "{told:?}"
    );
    assert!(core.ledger.device(card(0)).is_some() && core.ledger.device(card(1)).is_none());
    // It answers again: the client hears of a limit, greets anew, and is managed there.
    core.devices(&report(after(20_000), &[card(0), card(1)], None), after(20_002));
    let limited =
        |command: &Command| matches!(command.message, ToShim::Limit { device, .. } if device == card(1));
    assert!(core.limits().iter().any(limited));
    assert!(!core.ledger.client(client).unwrap().devices().contains_key(&card(1)));
    hello(&mut core, SessionId(2), &[card(0), card(1)], after(20_010));
    assert_eq!(core.ledger.client(client).unwrap().devices()[&card(1)].booked(), Bytes(GIB));
    assert!(unmanaged(&core.terms(after(20_011))).is_empty());
}

#[test]
fn the_first_limit_counts_a_context_that_no_reading_showed_before() {
    let mut core = core();
    core.devices(&report(after(0), &[card(0)], None), after(1));
    let client = hello(&mut core, SESSION, &[], after(10));
    core.limits();
    core.hear(client, SESSION, ToAgent::Met { device: card(0) }, after(20));
    assert!(core.limits().is_empty(), "no reading shows its context yet");
    assert!(core.decide(after(21)).read);
    core.devices(&report(after(22), &[card(0)], None), after(24));
    let limits = core.limits();
    assert_eq!(limits.len(), 1, "{limits:?}");
    assert!(!core.decide(after(25)).read);
}

#[test]
fn a_client_may_use_as_many_devices_as_its_page_has_room_for_and_more_without_the_agent() {
    let mut core = core();
    let all: Vec<DeviceId> = (0..33).map(card).collect();
    core.devices(&report(after(0), &all, None), after(1));
    let client = hello(&mut core, SESSION, &[], after(2));
    let mut told = Vec::new();
    for device in &all {
        told.extend(unmanaged(
            &core.hear(client, SESSION, ToAgent::Met { device: *device }, after(3)).commands,
        ));
    }
    assert_eq!(told, [card(32)]);
}
