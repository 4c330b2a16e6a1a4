//! What two releases agree on as long as both speak the same protocol: a pod that runs keeps its library when the agent is
//! upgraded. Each message as bytes, and each place on the counter page, is as `agreed-VERSION.txt` has it. Where that fails it is
//! another protocol, with a file of its own; as long as there was no release with this one, the file can be changed instead.

use std::fmt::Write as _;
use std::mem::offset_of;

use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};
use nvshare_common::counters::{Counters, DeviceCounters, MAX_DEVICES, PAGE_BYTES};
use nvshare_common::frame;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId, Ticket};
use nvshare_common::probe::Call;
use nvshare_common::protocol::{Answer, Held, Hello, KNOCK, Purpose, ToAgent, ToShim, VERSION};
use nvshare_common::share;
use serde::Serialize;
use serde::de::DeserializeOwned;

const CARD: DeviceId = DeviceId([7; 16]);

fn to_agent() -> Vec<ToAgent> {
    let (ticket, device, bytes, arena) = (Ticket(300), CARD, Bytes(70_000), ArenaId(5));
    let why = || "why".to_owned();
    vec![
        ToAgent::Met { device },
        ToAgent::ArenaHeld { arena },
        ToAgent::Want { device, total: bytes, purpose: Purpose::Work },
        ToAgent::Want { device, total: bytes, purpose: Purpose::Allocation },
        ToAgent::WantRoom { ticket, device, bytes },
        ToAgent::Stopped { ticket },
        ToAgent::DrainStalled { ticket },
        ToAgent::Released { ticket: Some(ticket), device, bytes },
        ToAgent::Released { ticket: None, device, bytes },
        ToAgent::SwapOutDone { ticket, copied: bytes, clean: Bytes(1) },
        ToAgent::SwapFailed { ticket, why: why() },
        ToAgent::Resident { device, copied: bytes },
        ToAgent::Unswappable { device, bytes, reason: why() },
        ToAgent::ArenaReady { arena },
        ToAgent::ArenaReturned { arena },
        ToAgent::Dead { why: why() },
        ToAgent::MayHave { ticket, device, total: bytes },
        ToAgent::Revived,
    ]
}

fn to_shim() -> Vec<ToShim> {
    let (ticket, device, bytes, arena) = (Ticket(300), CARD, Bytes(70_000), ArenaId(5));
    let range = DeviceRange { start: DevicePtr(9), bytes: Bytes(8) };
    vec![
        ToShim::Unmanaged { device, why: "why".to_owned() },
        ToShim::Bypassed,
        ToShim::Limit { device, bytes },
        ToShim::Grant { device, bytes },
        ToShim::Run,
        ToShim::Stop { ticket, stall_ms: 2000 },
        ToShim::Pace { on: true },
        ToShim::SwapOut { ticket, device, bytes, coldest: vec![range] },
        ToShim::Reclaim { ticket, device },
        ToShim::Arena { arena, bytes },
        ToShim::Trim { bytes },
        ToShim::Room { ticket, made: true },
        ToShim::Size { device, bytes },
    ]
}

fn hexadecimal(packet: &[u8]) -> String {
    packet.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// All messages of a kind, which must be all there are: one with the next number is none.
fn messages<T: Serialize + DeserializeOwned + std::fmt::Debug>(
    kind: &str,
    all: &[T],
    lines: &mut Vec<String>,
) {
    let packets: Vec<Vec<u8>> = all.iter().map(|message| frame::encode(message).expect("short")).collect();
    for (message, packet) in all.iter().zip(&packets) {
        lines.push(format!("{kind} {message:?}: {}", hexadecimal(packet)));
    }
    let next = packets.last().expect("messages")[0] + 1;
    for zeros in 0..64 {
        let packet: Vec<u8> = std::iter::once(next).chain(std::iter::repeat_n(0, zeros)).collect();
        let unknown = frame::decode::<T>(&packet);
        assert!(unknown.is_err(), "{kind}: {unknown:?} is missing here");
    }
}

fn now() -> Vec<String> {
    let mut lines = vec![format!("knock: {}", hexadecimal(KNOCK))];
    let mut packet = |name: &str, packet: Result<Vec<u8>, frame::FrameError>| {
        lines.push(format!("{name}: {}", hexadecimal(&packet.expect("short"))));
    };
    let held = Held { device: CARD, granted: Bytes(3), resident: Bytes(2), total: Bytes(4) };
    let hello =
        Hello { release: "0.1.0".into(), running: true, bypass: false, devices: vec![held], arenas: 6 };
    packet("hello", frame::encode_hello(&hello));
    let (limits, sizes) = (vec![(CARD, Bytes(1))], vec![(CARD, Bytes(2))]);
    packet("welcome", frame::encode_answer(&Answer::Welcome { client: ClientId(8), limits, sizes }));
    packet("refused", frame::encode_answer(&Answer::Refused { why: "why".into() }));
    messages("to the agent", &to_agent(), &mut lines);
    messages("to the shim", &to_shim(), &mut lines);

    let ticket = share::Ticket { place: [1; 16], number: 2, secret: [3; 16] };
    lines.push(format!("ticket: {}", hexadecimal(&ticket.write())));
    let given = share::Answer::Given {
        device: CARD,
        bytes: Bytes(4),
        offset: Bytes(5),
        pieces: vec![Bytes(6), Bytes(7)],
    };
    messages("to who has a ticket", &[share::Answer::Gone, given, share::Answer::Coming], &mut lines);

    lines.push(format!("page: {PAGE_BYTES} bytes, {MAX_DEVICES} devices of {}", size_of::<DeviceCounters>()));
    for (name, at) in [
        ("application", offset_of!(Counters, application)),
        ("engine", offset_of!(Counters, engine)),
        ("waiting", offset_of!(Counters, waiting)),
        ("devices", offset_of!(Counters, devices)),
        ("door", offset_of!(Counters, door)),
        ("door_cookie", offset_of!(Counters, door_cookie)),
        ("of a device, in_use", offset_of!(DeviceCounters, in_use)),
        ("of a device, uuid", offset_of!(DeviceCounters, uuid)),
        ("of a device, resident", offset_of!(DeviceCounters, resident)),
        ("of a device, swapped", offset_of!(DeviceCounters, swapped)),
        ("of a device, shadow", offset_of!(DeviceCounters, shadow)),
        ("of a device, unswappable", offset_of!(DeviceCounters, unswappable)),
        ("of a device, copied_out", offset_of!(DeviceCounters, copied_out)),
        ("of a device, copied_in", offset_of!(DeviceCounters, copied_in)),
        ("of a device, clean", offset_of!(DeviceCounters, clean)),
        ("of a device, managed", offset_of!(DeviceCounters, managed)),
    ] {
        lines.push(format!("page, {name}: {at}"));
    }
    for call in Call::ALL.iter().filter(|call| call.is_compared()) {
        lines.push(format!("page, count of {}: {}", call.name(), *call as usize));
    }
    lines
}

#[test]
fn what_is_said_and_shared_is_what_the_protocol_of_this_version_has() {
    let file = format!("{}/tests/agreed-{VERSION}.txt", env!("CARGO_MANIFEST_DIR"));
    let agreed = std::fs::read_to_string(&file).unwrap_or_else(|why| panic!("{file}: {why}"));
    let now = now();
    let agreed: Vec<String> = agreed.lines().map(str::to_owned).collect();
    let missing = |of: &[String], there: &[String]| {
        of.iter().filter(|line| !there.contains(line)).cloned().collect::<Vec<_>>().join("\n")
    };
    let (new, gone) = (missing(&now, &agreed), missing(&agreed, &now));
    assert!(new.is_empty() && gone.is_empty(), "new since {file}:\n{new}\nand gone:\n{gone}");
}
