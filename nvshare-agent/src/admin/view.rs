//! The agent's state as text, for `status`, `probes` and `top`.

use std::fmt::Write;
use std::time::Duration;

use nvshare_agent_core::observation::{ObserverState, Source};
use nvshare_agent_core::snapshot::{Client, Device, State};
use nvshare_agent_core::value;
use nvshare_common::bytes::Bytes;
use nvshare_common::event::Loss;

use super::foreign;
use crate::health::Readiness;

/// What moved since an earlier look.
pub(super) struct Since<'a> {
    /// The earlier look.
    pub(super) state: &'a State,
    /// How long ago.
    pub(super) time: Duration,
}

/// Everything an operator asks first, in at most a screen or two.
pub(super) fn text(state: &State, readiness: &Readiness, since: Option<&Since<'_>>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = heading(&mut text, state, readiness, since);
    text
}

fn heading(
    out: &mut String,
    state: &State,
    readiness: &Readiness,
    since: Option<&Since<'_>>,
) -> Result<(), std::fmt::Error> {
    let ready = if readiness.ready { "ready" } else { "NOT READY" };
    writeln!(out, "nvshare-agent {}, up {}, {ready}", state.release, age(state.up_seconds))?;
    for missing in &readiness.missing {
        writeln!(out, "missing: {}: {}", missing.part.name(), missing.why)?;
    }
    let settings = &state.settings;
    writeln!(
        out,
        "lease {} to {}, {} x a switch; reserve {}; host memory {} of {} in use",
        value::show(settings.lease_floor),
        value::show(settings.lease_ceiling),
        settings.lease_factor,
        settings.reserve,
        state.host.handed_out,
        state.host.budget,
    )?;
    if let Some(problem) = &state.host.problem {
        writeln!(out, "host memory: {problem} ({} short)", state.host.missing)?;
    }
    let switches = &state.switches;
    if switches.count > 0 {
        let mean = switches.seconds.sum / switches.seconds.count.max(1) as f64;
        let drain = switches.drain_seconds.sum / switches.drain_seconds.count.max(1) as f64;
        write!(out, "{} switches, {mean:.3} s each ({drain:.3} s of it drain)", switches.count)?;
        if let Some(since) = since {
            write!(out, "; {}", movement(state, since))?;
        }
        writeln!(out)?;
    }
    if !state.granting {
        match state.awaited.as_slice() {
            [] => writeln!(out, "nothing is granted yet: the agent is starting")?,
            pids => writeln!(out, "nothing is granted yet: waiting for the processes {pids:?} to say hello")?,
        }
    }
    writeln!(out)?;
    if let (Some(problem), false) = (&state.devices_problem, state.devices.is_empty()) {
        writeln!(out, "devices: {problem}")?;
    }
    out.push_str(&devices(&state.devices));
    writeln!(out)?;
    out.push_str(&clients(state));
    out.push_str(&foreign::text(&state.processes));
    Ok(())
}

/// Rates between two looks.
pub(super) fn movement(state: &State, since: &Since<'_>) -> String {
    let moved = |state: &State| {
        let all = state.totals();
        (all.copied_out, all.copied_in)
    };
    let (now, before) = (moved(state), moved(since.state));
    let rate = |now: Bytes, before: Bytes| {
        Bytes((now.saturating_sub(before).0 as f64 / since.time.as_secs_f64().max(1e-3)) as u64)
    };
    let switches = state.switches.count.saturating_sub(since.state.switches.count);
    format!("now +{switches}, {}/s out, {}/s in", rate(now.0, before.0), rate(now.1, before.1))
}

fn devices(devices: &[Device]) -> String {
    if devices.is_empty() {
        return "no devices\n".to_owned();
    }
    let head = ["GPU", "PRODUCT", "CAPACITY", "NEEDED", "RESIDENT", "SWAPPED", "FOREIGN", "FREE", "", "UUID"];
    let mut devices: Vec<&Device> = devices.iter().collect();
    devices.sort_by_key(|device| device.index);
    let rows = devices.into_iter().map(|device| {
        [
            device.index.to_string(),
            device.name.clone(),
            device.capacity.to_string(),
            device.needed.to_string(),
            device.resident.to_string(),
            device.swapped.to_string(),
            device.foreign.to_string(),
            device.free.to_string(),
            if device.contended { "in turns" } else { "fits" }.to_owned(),
            device.uuid.clone(),
        ]
    });
    table(head, rows)
}

fn clients(state: &State) -> String {
    if state.clients.is_empty() {
        return "no clients\n".to_owned();
    }
    let head = [
        "CLIENT",
        "PID",
        "NAME",
        "POD",
        "ACTIVITY",
        "FOR",
        "LEASE",
        "ORDERS",
        "NEEDED",
        "RESIDENT",
        "SWAPPED",
        "UNSWAPPABLE",
    ];
    let mut text = table(head, state.clients.iter().map(client));
    for client in &state.clients {
        for note in &client.notes {
            let _ = writeln!(text, "client {}: {note}", client.client.0);
        }
    }
    text
}

fn client(client: &Client) -> [String; 12] {
    let sum = |of: fn(&nvshare_agent_core::snapshot::ClientDevice) -> Bytes| {
        Bytes(client.devices.iter().fold(0, |sum, held| of(held).0.saturating_add(sum))).to_string()
    };
    let orders = client.orders();
    let lasts = client.waiting_seconds.max(client.idle_seconds);
    [
        client.client.0.to_string(),
        client.process.pid.to_string(),
        printable(&client.name),
        client.owner.to_string(),
        client.activity.name().to_owned(),
        if lasts > 0.0 { age(lasts) } else { "-".to_owned() },
        client.lease_seconds.map_or("-".to_owned(), |left| format!("{left:.1}s")),
        if orders.is_empty() { "-".to_owned() } else { orders },
        sum(|held| held.needed),
        sum(|held| held.resident),
        sum(|held| held.swapped),
        sum(|held| held.unswappable),
    ]
}

/// What the uprobes are attached to, and what is wrong with them.
pub(super) fn probes(observer: &ObserverState) -> String {
    let mut text = match (observer.loaded, observer.scanned) {
        (false, _) => "the eBPF programs are not loaded: nothing is observed\n".to_owned(),
        (true, false) => {
            "the eBPF programs are loaded; the first look at all processes is not done yet\n".to_owned()
        }
        (true, true) => "the eBPF programs are loaded; all processes were looked at\n".to_owned(),
    };
    let _ = writeln!(
        text,
        "{} records read, {} lost{}, {} calls by processes without a slot\n",
        observer.records,
        observer.lost,
        losses(observer),
        observer.unattributed
    );
    for problem in &observer.problems {
        let _ = writeln!(text, "problem: {problem}");
    }
    let _ = writeln!(text, "{}\n", managed(observer));
    if observer.attachments.is_empty() {
        text.push_str("no CUDA driver was found: none is in use, and --libcuda names none\n");
        return text;
    }
    let rows = observer.attachments.iter().map(|file| {
        [
            file.functions.to_string(),
            file.refused.len().to_string(),
            file.stepped.to_string(),
            file.means.clone(),
            printable(&file.path),
        ]
    });
    text.push_str(&table(["ATTACHED", "REFUSED", "STEPPED", "MEANS", "LIBRARY"], rows));
    for file in &observer.attachments {
        let path = printable(&file.path);
        for why in file.problem.iter().chain(&file.refused) {
            let _ = writeln!(text, "{path}: {}", printable(why));
        }
    }
    for file in observer.attachments.iter().filter(|file| !file.places.is_empty()) {
        let _ = writeln!(text, "\nprobes in {}:", printable(&file.path));
        text.push_str(&file.places);
    }
    text
}

/// How records were lost, in brackets.
fn losses(observer: &ObserverState) -> String {
    let kinds = Loss::ALL.iter().map(|how| (how.name(), observer.losses[*how as usize]));
    let kinds: Vec<String> =
        kinds.filter(|(_, count)| *count > 0).map(|(how, count)| format!("{how} {count}")).collect();
    if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) }
}

/// One line on managed memory.
fn managed(observer: &ObserverState) -> String {
    let uvm = &observer.uvm;
    if uvm.source == Source::Tools {
        return format!(
            "managed memory is observed by the module's own counters: {} processes with some, {} whose counters could not be had",
            uvm.followed, uvm.refused
        );
    }
    if uvm.observed {
        return format!(
            "managed memory is observed by kprobes: {} events of older address spaces, {} without room, {} unreadable",
            uvm.unknown, uvm.refused, uvm.unreadable
        );
    }
    let why = uvm.why.as_deref().unwrap_or("the eBPF programs are not loaded");
    format!("managed memory is not observed: {}", printable(why))
}

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()
    });
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// A text that a client chose must not steer the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// `3d4h`, `2h5m`, `4m10s`, `12.3s`.
pub(super) fn age(seconds: f64) -> String {
    let whole = seconds.max(0.0) as u64;
    match whole {
        0..60 => format!("{seconds:.1}s"),
        60..3600 => format!("{}m{}s", whole / 60, whole % 60),
        3600..86400 => format!("{}h{}m", whole / 3600, whole % 3600 / 60),
        _ => format!("{}d{}h", whole / 86400, whole % 86400 / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::{Missing, Part};

    fn state() -> State {
        let mut state = State { release: "0.1.0".to_owned(), up_seconds: 4000.0, ..State::default() };
        state.devices.push(Device { name: "NVIDIA H200".to_owned(), contended: true, ..Device::default() });
        state.clients.push(
            serde_json::from_value(serde_json::json!({
                "client": 3, "process": {"pid": 77, "start": 1}, "name": "py\u{1b}[2Jthon", "cgroup": "/",
                "shim": "0.1.0", "activity": "waiting", "waiting_seconds": 75.0, "idle_seconds": 0.0,
                "lease_seconds": null, "virtual_runtime_seconds": 0.0, "stalls": 0,
                "notes": ["waits for host memory"], "arenas": 0, "arena_bytes": 0,
                "devices": [], "totals": nvshare_agent_core::snapshot::Totals::default(),
            }))
            .unwrap(),
        );
        state
    }

    #[test]
    fn the_text_names_what_is_missing_who_waits_and_why() {
        let why = "no NVML".to_owned();
        let readiness =
            Readiness { ready: false, missing: vec![Missing { part: Part::Devices, why, needed: true }] };
        let text = text(&state(), &readiness, None);
        for expected in [
            "up 1h6m, NOT READY",
            "devices: no NVML",
            "NVIDIA H200",
            "in turns",
            "waiting",
            "1m15s",
            "waits for host memory",
        ] {
            assert!(text.contains(expected), "{expected} is not in\n{text}");
        }
    }

    #[test]
    fn what_was_ordered_for_a_client_is_shown() {
        let mut state = state();
        let readiness = Readiness { ready: true, missing: vec![] };
        assert!(!text(&state, &readiness, None).contains("pinned"));
        let client = &mut state.clients[0];
        client.priority = nvshare_agent_core::order::Priority::High;
        client.weight = 0.5;
        client.pinned = true;
        assert!(text(&state, &readiness, None).contains("pinned, high, weight 0.5"));
        state.clients[0].pinned = false;
        state.clients[0].held_out = true;
        assert!(text(&state, &readiness, None).contains("held out, high"));
    }

    #[test]
    fn a_clients_name_cannot_steer_the_terminal() {
        let readiness = Readiness { ready: true, missing: vec![] };
        assert!(!text(&state(), &readiness, None).contains('\u{1b}'));
    }

    #[test]
    fn rates_are_between_two_looks() {
        let (before, mut now) = (state(), state());
        now.switches.count = 3;
        now.clients[0].totals.copied_out = Bytes(4 << 20);
        let since = Since { state: &before, time: Duration::from_secs(2) };
        let readiness = Readiness { ready: true, missing: vec![] };
        let text = text(&now, &readiness, Some(&since));
        assert!(text.contains("now +3, 2 MiB/s out, 0 B/s in"), "{text}");
    }

    #[test]
    fn probes_names_each_library_with_what_is_wrong_with_it() {
        let file = |path: &str, functions, refused: &[&str], problem: Option<&str>| {
            nvshare_agent_core::observation::Attachment {
                path: path.to_owned(),
                functions,
                refused: refused.iter().map(ToString::to_string).collect(),
                stepped: 2,
                means: "uprobe_multi".to_owned(),
                problem: problem.map(str::to_owned),
                places: format!("cuMemFree_v2 +0x{functions:x} (behind it) 55 emulated\n"),
            }
        };
        let observer = ObserverState {
            loaded: true,
            problems: vec!["no return probes here".to_owned()],
            lost: 7,
            losses: [0, 7, 0, 0],
            uvm: nvshare_agent_core::observation::Uvm {
                why: Some("no module".to_owned()),
                ..Default::default()
            },
            attachments: vec![
                file("/lib/a.so.1", 40, &["cuMemAlloc_v2: no such symbol"], None),
                file("/lib/b\u{1b}.so.1", 0, &[], Some("no permission")),
            ],
            ..ObserverState::default()
        };
        let text = probes(&observer);
        for part in [
            "first look at all processes is not done",
            "problem: no return probes here",
            "managed memory is not observed: no module",
            "40        1        2        uprobe_multi  /lib/a.so.1",
            "/lib/a.so.1: cuMemAlloc_v2: no such symbol",
            "/lib/b?.so.1: no permission",
            "7 lost (throttled 7), 0 calls",
            "probes in /lib/a.so.1:\ncuMemFree_v2 +0x28 (behind it) 55 emulated\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert!(probes(&ObserverState::default()).contains("nothing is observed"));
        let by = |source| {
            let uvm = nvshare_agent_core::observation::Uvm {
                observed: true,
                source,
                followed: 3,
                ..Default::default()
            };
            managed(&ObserverState { uvm, ..ObserverState::default() })
        };
        assert!(by(Source::Tools).contains("module's own counters: 3 processes"));
        assert!(by(Source::Kprobes).contains("by kprobes"));
    }

    #[test]
    fn columns_line_up() {
        let rows = [["1".to_owned(), "long name".to_owned()], ["1000".to_owned(), "x".to_owned()]];
        assert_eq!(table(["ID", "NAME"], rows.into_iter()), "ID    NAME\n1     long name\n1000  x\n");
    }
}
