//! Every exported series, made from the published [`State`] whenever somebody asks: a series vanishes with the client or
//! device it belongs to, and nothing is counted twice.

mod clients;
mod foreign;
mod lines;
mod series;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use nvshare_agent_core::observation::Source;
use nvshare_agent_core::snapshot::{Activity, State, Totals};
use nvshare_common::bytes::Bytes;
use nvshare_common::event::Loss;
use nvshare_common::probe::Call;
use prometheus::TextEncoder;
use tokio::sync::watch;

use crate::control::{CONNECTIONS, End, Refusal};
use crate::health::{Health, Readiness};
use clients::clients;
use lines::Lines;
use series::{Page, Series};

/// Reasons for unswappable memory that one client may have a label for; the rest is `other`. Shims choose these texts.
const REASONS: usize = 16;
/// The most clients that have series of their own: as many as can be connected. Those that left their sessions and live
/// on could be more.
const CLIENTS: usize = CONNECTIONS;
/// The most characters of a label that comes from a client.
const LABEL_CHARS: usize = 32;

/// What `/metrics` shows.
pub struct Metrics {
    state: watch::Receiver<Arc<State>>,
    health: Health,
    /// Of the last page, by series of clients.
    sizes: Mutex<Vec<usize>>,
}

impl Metrics {
    /// Series of what `state` holds at the time of each scrape.
    pub fn new(state: watch::Receiver<Arc<State>>, health: Health) -> Metrics {
        Metrics { state, health, sizes: Mutex::default() }
    }

    /// All series in Prometheus' text format.
    pub fn text(&self) -> prometheus::Result<String> {
        let state = Arc::clone(&self.state.borrow());
        let mut text =
            TextEncoder::new().encode_to_string(&page(&state, &self.health.readiness()).families())?;
        let mut sizes = self.sizes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut lines = Lines::new(&sizes);
        clients(&mut lines, &state);
        *sizes = lines.sizes();
        drop(sizes);
        lines.write(&mut text);
        Ok(text)
    }
}

fn page(state: &State, readiness: &Readiness) -> Page {
    let mut page = Page::new();
    agent(&mut page, state, readiness);
    devices(&mut page, state);
    all_clients(&mut page, state);
    observer(&mut page, state);
    page
}

fn agent(page: &mut Page, state: &State, readiness: &Readiness) {
    page.put(Series::Build, &[&state.release, &state.protocol.to_string()], 1.0);
    page.put(Series::Uptime, &[], state.up_seconds);
    page.put(Series::Ready, &[], flag(readiness.ready));
    for part in crate::health::Part::ALL {
        let missing = readiness.missing.iter().any(|missing| missing.part == part);
        page.put(Series::PartMissing, &[part.name()], flag(missing));
    }
    page.put(Series::Granting, &[], flag(state.granting));
    page.put(Series::Awaited, &[], state.awaited.len() as f64);
    page.put(Series::LeaseFloor, &[], state.settings.lease_floor.as_secs_f64());
    page.put(Series::LeaseCeiling, &[], state.settings.lease_ceiling.as_secs_f64());
    page.put(Series::LeaseFactor, &[], state.settings.lease_factor);

    page.put(Series::HostBudget, &[], bytes(state.host.budget));
    page.put(Series::HostArenas, &["handed_out"], bytes(state.host.handed_out));
    page.put(Series::HostArenas, &["being_made"], bytes(state.host.being_made));
    page.put(Series::HostMissing, &[], bytes(state.host.missing));

    page.put(Series::SessionsOpened, &[], state.sessions.opened as f64);
    let sessions = &state.sessions;
    for reason in Refusal::ALL.map(Refusal::label) {
        page.put(Series::SessionsRefused, &[reason], count(&sessions.refused, reason));
    }
    for reason in End::LABELS {
        page.put(Series::SessionsClosed, &[reason], count(&sessions.closed, reason));
    }
}

fn devices(page: &mut Page, state: &State) {
    for device in &state.devices {
        let (index, uuid) = (device.index.to_string(), device.uuid.as_str());
        let gpu = [index.as_str(), uuid];
        let held =
            || state.clients.iter().flat_map(|client| &client.devices).filter(|held| held.uuid == uuid);
        page.put(Series::DeviceInfo, &[gpu[0], gpu[1], &device.name], 1.0);
        let figures = [
            (Series::DeviceTotal, device.total),
            (Series::DeviceCapacity, device.capacity),
            (Series::DeviceUsed, device.used),
            (Series::DeviceReserve, device.reserve),
            (Series::DeviceGranted, device.granted),
            (Series::DeviceResident, device.resident),
            (Series::DeviceSwapped, device.swapped),
            (Series::DeviceShadow, held().map(|held| held.shadow).sum()),
            (Series::DeviceEvictable, device.evictable),
            (Series::DeviceForeign, device.foreign),
            (Series::DeviceFree, device.free),
            (Series::DeviceNeeded, device.needed),
            (Series::DeviceExcess, device.excess),
        ];
        for (series, figure) in figures {
            page.put(series, &gpu, bytes(figure));
        }
        page.put(Series::DeviceContended, &gpu, flag(device.contended));
        page.put(Series::DeviceReadingAge, &gpu, device.reading_age_seconds);
        if let Some(link) = device.link_bytes_per_second {
            page.put(Series::Link, &[gpu[0], gpu[1], "out"], link as f64);
            page.put(Series::Link, &[gpu[0], gpu[1], "in"], link as f64);
        }

        let mut reasons: BTreeMap<String, Bytes> = BTreeMap::new();
        for (reason, amount) in held().flat_map(|held| few(&held.unswappable_reasons)) {
            let sum = reasons.entry(reason).or_default();
            sum.0 = sum.0.saturating_add(amount.0);
        }
        for (reason, amount) in reasons {
            page.put(Series::DeviceUnswappable, &[gpu[0], gpu[1], &reason], bytes(amount));
        }
    }
}

/// What clients did together since the agent began, those that ended too.
fn all_clients(page: &mut Page, state: &State) {
    for activity in Activity::ALL {
        let count = state.clients.iter().filter(|client| client.activity == activity).count();
        page.put(Series::Clients, &[activity.name()], count as f64);
    }
    let never_runs = state.clients.iter().filter(|client| client.hindered).count();
    let late = state.clients.iter().filter(|client| client.latecomer).count();
    page.put(Series::ClientsHindered, &["never_runs"], never_runs as f64);
    page.put(Series::ClientsHindered, &["latecomer"], late as f64);
    page.put(Series::ClientsEnded, &[], state.ended_count as f64);

    page.distribution(Series::Switches, &[], &state.switches.seconds);
    page.distribution(Series::SwitchDrain, &[], &state.switches.drain_seconds);
    page.put(Series::SwitchBytes, &["out"], bytes(state.switches.bytes_out));
    page.put(Series::SwitchBytes, &["in"], bytes(state.switches.bytes_in));
    page.distribution(Series::Waits, &[], &state.waiting_seconds);
    page.distribution(Series::Swaps, &["out"], &state.swap_out_seconds);
    page.distribution(Series::Swaps, &["in"], &state.swap_in_seconds);

    let all = state.totals();
    page.put(Series::SwapBytes, &["out"], bytes(all.copied_out));
    page.put(Series::SwapBytes, &["in"], bytes(all.copied_in));
    page.put(Series::SwapClean, &[], bytes(all.clean));
    page.put(Series::SwapFailures, &[], all.swap_failures as f64);
    page.put(Series::Stops, &[], all.stops as f64);
    page.put(Series::DrainStalls, &[], all.stalls as f64);
    uvm(page, state, &all);
    calls(page, &all);
}

/// No figure where nobody looks: a zero would pass for one.
fn uvm(page: &mut Page, state: &State, all: &Totals) {
    let uvm = &state.observer.uvm;
    page.put(Series::UvmObserved, &[], flag(uvm.observed));
    for source in Source::ALL {
        page.put(Series::UvmSource, &[source.name()], flag(uvm.source == source));
    }
    if !uvm.observed {
        return;
    }
    page.put(Series::UvmFaults, &[], all.uvm_faults as f64);
    page.put(Series::UvmBytes, &["in"], bytes(all.uvm_to_device));
    page.put(Series::UvmBytes, &["out"], bytes(all.uvm_bytes.saturating_sub(all.uvm_to_device)));
    if uvm.source == Source::Tools {
        page.put(Series::UvmCpuFaults, &[], all.uvm_cpu_faults as f64);
        page.put(Series::UvmProcesses, &[], uvm.followed as f64);
    }
    let lost = [("unknown", uvm.unknown), ("refused", uvm.refused), ("unreadable", uvm.unreadable)];
    for (reason, count) in lost {
        page.put(Series::UvmUnattributed, &[reason], count as f64);
    }
}

fn calls(page: &mut Page, all: &Totals) {
    let counts = [
        ("shim", "application", &all.application_calls),
        ("shim", "engine", &all.engine_calls),
        ("uprobes", "application", &all.application_seen),
        ("uprobes", "engine", &all.engine_seen),
    ];
    for (seen_by, made_by, counts) in counts {
        // The shim counts no others.
        for call in Call::ALL.iter().filter(|call| seen_by == "uprobes" || call.is_compared()) {
            page.put(Series::Calls, &[seen_by, made_by, call.name()], counts.0[*call as usize] as f64);
        }
    }
}

fn observer(page: &mut Page, state: &State) {
    page.put(Series::ForeignProcesses, &[], state.processes.len() as f64);
    page.put(
        Series::ForeignAllocated,
        &[],
        bytes(state.processes.iter().map(|process| process.allocated).sum()),
    );
    page.put(Series::ForeignManaged, &[], bytes(state.processes.iter().map(|process| process.managed).sum()));
    for (owner, allocated) in foreign::by_owner(&state.processes) {
        page.put(Series::ForeignPod, &owner, bytes(allocated));
    }

    let observer = &state.observer;
    let failed = observer.attachments.iter().filter(|file| file.problem.is_some()).count();
    let refused: usize = observer.attachments.iter().map(|file| file.refused.len()).sum();
    let attached: u32 = observer.attachments.iter().map(|file| file.functions).sum();
    page.put(Series::UprobesLoaded, &[], flag(observer.loaded));
    page.put(Series::UprobeFiles, &["attached"], (observer.attachments.len() - failed) as f64);
    page.put(Series::UprobeFiles, &["failed"], failed as f64);
    page.put(Series::UprobeFunctions, &["attached"], f64::from(attached));
    page.put(Series::UprobeFunctions, &["refused"], refused as f64);
    page.put(Series::Events, &[], observer.records as f64);
    for how in Loss::ALL {
        page.put(Series::EventsLost, &[how.name()], observer.losses[how as usize] as f64);
    }
    page.put(Series::CallsUnattributed, &[], observer.unattributed as f64);
}

/// A text that a client chose, as a label.
fn label(text: &str) -> String {
    text.chars().take(LABEL_CHARS).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// A client's reasons, as many as may have a label of their own.
fn few(reasons: &BTreeMap<String, Bytes>) -> BTreeMap<String, Bytes> {
    let mut few: BTreeMap<String, Bytes> = BTreeMap::new();
    for (index, (reason, amount)) in reasons.iter().enumerate() {
        let name = if index < REASONS { label(reason) } else { "other".to_owned() };
        let sum = few.entry(name).or_default();
        sum.0 = sum.0.saturating_add(amount.0);
    }
    few
}

/// How often something happened, for one of the reasons for which it can happen.
fn count(counts: &BTreeMap<String, u64>, reason: &str) -> f64 {
    counts.get(reason).copied().unwrap_or_default() as f64
}

fn bytes(bytes: Bytes) -> f64 {
    bytes.0 as f64
}

fn flag(set: bool) -> f64 {
    f64::from(u8::from(set))
}

#[cfg(test)]
mod tests;
