//! What the uprobes' books say of processes without the library decides nothing: NVML does.

use std::time::Duration;

use nvshare_agent_core::conductor::{Command, Core};
use nvshare_agent_core::ledger::SessionId;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::What;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::reading::{Reading, Report};
use nvshare_agent_world::{GIB, card, settings};
use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::probe::Call;
use nvshare_common::protocol::{Hello, Purpose, ToAgent};

const BEGIN: Moment = Moment(1_000_000_000_000);
const STRANGER: Process = Process { pid: 99, start: 1 };

fn after(ms: u64) -> Moment {
    BEGIN + Duration::from_millis(ms)
}

/// The stranger holds so much by NVML, and so much by the books: what two clients that want 6 GiB each are told, and what is
/// foreign then.
fn told(measured: u64, booked: u64) -> (Vec<Vec<Command>>, Bytes) {
    let mut core = Core::new(settings());
    core.begin_granting(BEGIN);
    let range = DeviceRange { start: DevicePtr(1 << 40), bytes: Bytes(booked) };
    core.ledger.observe(STRANGER, &What::Allocated(Call::Alloc, range));
    let mut told = Vec::new();
    for turn in 0..40 {
        let now = |ms| after(100 * turn + ms);
        let reading = Reading {
            device: card(0),
            index: 0,
            name: "card".into(),
            total: Bytes(16 * GIB),
            used: Bytes(measured),
            link: None,
            per_process: [(STRANGER.pid, Bytes(measured))].into(),
        };
        let report = Report { began: now(0), devices: vec![reading], complete: true, problem: None };
        core.devices(&report, now(1));
        if turn < 2 {
            let session = SessionId(turn + 1);
            let hello =
                Hello { release: "1".into(), running: false, bypass: false, devices: Vec::new(), arenas: 0 };
            let client = core.hello(Process { pid: 7 + turn as u32, start: 1 }, session, &hello, now(2));
            let want = ToAgent::Want { device: card(0), total: Bytes(6 * GIB), purpose: Purpose::Work };
            core.hear(client, session, want, now(3));
        }
        core.limits();
        told.push(core.terms(now(4)));
        told.push(core.decide(now(5)).commands);
    }
    let foreign = core.ledger.devices()[&card(0)].foreign();
    (told, foreign)
}

#[test]
fn whatever_the_books_say_of_others_clients_are_told_the_same() {
    let exact = told(3 * GIB, 3 * GIB);
    assert!(exact.0.iter().any(|commands| !commands.is_empty()), "nobody was told anything");
    for booked in [0, GIB, 16 * GIB, u64::MAX] {
        assert_eq!(told(3 * GIB, booked), exact, "{booked} in the books");
    }
    // The test can tell: by NVML's figure they are told something else.
    assert_ne!(told(12 * GIB, 3 * GIB), exact);
}
