//! The state that others may see, made from everything the conductor holds.

use nvshare_agent_core::conductor::refusals;
use nvshare_agent_core::ledger::{Client, Device, Observed};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::policy;
use nvshare_agent_core::process::Process;
use nvshare_agent_core::snapshot::{self, Activity, State, Totals};
use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::ids::DeviceId;
use nvshare_common::protocol;

use super::Conductor;

impl Conductor {
    pub(super) fn state(&self, now: Moment) -> State {
        let core = &self.core;
        let mut ended_totals = self.ended_totals.clone();
        for ended in &self.ended {
            ended_totals.add(&ended.totals);
        }
        let contended = core.contended();
        State {
            release: env!("CARGO_PKG_VERSION").to_owned(),
            protocol: protocol::VERSION,
            up_seconds: now.since(self.began).as_secs_f64(),
            settings: core.settings.clone(),
            awaited: self.awaited.iter().copied().collect(),
            granting: !core.held_back,
            devices: core
                .ledger
                .devices()
                .iter()
                .map(|(id, device)| self.device(*id, device, contended.contains(id), now))
                .collect(),
            devices_problem: core.devices_problem.clone(),
            clients: core.ledger.clients().values().map(|client| self.client(client, now)).collect(),
            processes: core
                .ledger
                .observed()
                .iter()
                .filter(|(process, _)| core.ledger.client_of(**process).is_none())
                .map(|(process, observed)| self.foreign(*process, observed, now))
                .collect(),
            ended: self.ended.iter().cloned().collect(),
            ended_totals,
            ended_count: self.ended_count,
            earlier: self.earlier.clone(),
            host: core.host(),
            observer: self.observer.clone(),
            switches: core.switches.snapshot_since(self.began),
            waiting_seconds: core.waiting_seconds.clone(),
            swap_out_seconds: core.swap_out_seconds.clone(),
            swap_in_seconds: core.swap_in_seconds.clone(),
            sessions: self.sessions.clone(),
        }
    }

    fn device(&self, id: DeviceId, device: &Device, contended: bool, now: Moment) -> snapshot::Device {
        let ledger = &self.core.ledger;
        let sum =
            |of: fn(&Holdings) -> Bytes| ledger.holdings(id).map(|(_, holding)| of(holding.page())).sum();
        let free = ledger.free(id);
        snapshot::Device {
            uuid: snapshot::uuid(id),
            index: device.index(),
            name: device.name().to_owned(),
            total: device.total(),
            link_bytes_per_second: device.link(),
            capacity: device.capacity(),
            used: device.used(),
            reserve: device.reserve(),
            granted: ledger.granted(id),
            resident: sum(|page| page.resident),
            swapped: sum(|page| page.swapped),
            unswappable: ledger.holdings(id).map(|(_, holding)| holding.immovable()).sum(),
            foreign: device.foreign(),
            evictable: device.evictable(),
            free: Bytes(free.max(0) as u64),
            needed: ledger.holdings(id).map(|(_, holding)| holding.needed()).sum(),
            contended,
            excess: Bytes((-free).max(0) as u64),
            reading_age_seconds: now.since(device.read_began()).as_secs_f64(),
        }
    }

    fn client(&self, client: &Client, now: Moment) -> snapshot::Client {
        let settings = &self.core.settings;
        let lease = client.lease().and_then(|lease| {
            let end = lease.began? + policy::lease_length(settings, lease.cost);
            Some(end.since(now).as_secs_f64() - now.since(end).as_secs_f64())
        });
        let observed = self.core.ledger.observed().get(&client.process());
        let devices = client.devices().iter().map(|(id, holding)| {
            let paged = observed.map(|observed| observed.paged_on(*id)).unwrap_or_default();
            snapshot::ClientDevice {
                uuid: snapshot::uuid(*id),
                granted: holding.granted(),
                needed: holding.needed(),
                limit: client.limits().get(id).copied().unwrap_or_default(),
                resident: holding.page().resident,
                swapped: holding.page().swapped,
                shadow: holding.page().shadow,
                unswappable: holding.immovable(),
                unswappable_reasons: holding.unswappable().clone(),
                measured: holding.measured(),
                uvm_faults: paged.faults,
                uvm_in: paged.to_device,
                uvm_out: paged.to_host,
            }
        });
        snapshot::Client {
            client: client.id(),
            process: client.process(),
            name: client.name().to_owned(),
            cgroup: client.cgroup().to_owned(),
            owner: self.owners.owner(client.process()),
            shim: client.shim().to_owned(),
            priority: client.orders().priority,
            weight: client.orders().weight.value(),
            pinned: client.orders().pinned,
            held_out: client.held_out(),
            ordered_limit: client.orders().limit,
            activity: activity(client, now),
            waiting_seconds: client.wants().map_or(0.0, |since| now.since(since).as_secs_f64()),
            idle_seconds: now.since(client.active_at()).as_secs_f64(),
            lease_seconds: lease,
            virtual_runtime_seconds: client.runtime().as_secs_f64(),
            stalls: client.stalls(),
            hindered: self.core.hindered.contains_key(&client.id()),
            latecomer: self.core.ledger.devices().values().any(|at| at.latecomers().contains(&client.id())),
            notes: self.notes(client, now),
            devices: devices.collect(),
            arenas: client.arenas().len() as u64,
            arena_bytes: client.arena_bytes(),
            totals: self.totals(client),
        }
    }

    /// Why it cannot run, be stopped or be moved.
    fn notes(&self, client: &Client, now: Moment) -> Vec<String> {
        let mut notes = refusals::notes(client, now);
        notes.extend(self.core.hindered.get(&client.id()).cloned());
        notes.extend(
            client.dead().map(|why| format!("its device failed ({why}): its memory stays until it exits")),
        );
        notes.extend(client.untrusted().map(|why| format!("it {why}")));
        notes.extend(client.thrashes(&self.core.settings, now).map(|device| {
            format!(
                "its managed memory thrashes on {device}: beside another such program it takes turns there"
            )
        }));
        if client.bypass() {
            notes.push(
                "it makes driver calls that its shim does not see: its memory is never moved".to_owned(),
            );
        }
        for (device, _) in
            self.core.ledger.devices().iter().filter(|(_, at)| at.latecomers().contains(&client.id()))
        {
            notes.push(format!(
                "it came when {device} was full: it gets no more memory there, so that one that came before can go on"
            ));
        }
        for (device, why) in client.unmanaged() {
            notes.push(format!("on {device} it runs as without an agent: {why}"));
        }
        if client.unyielding().is_some() {
            notes.push("it does not yield: others are served around it".to_owned());
        }
        if client.host_exhausted() {
            notes.push("no more host memory for its shadows".to_owned());
        }
        notes.extend(self.owners.notes(client.process()));
        if client.swap_failures() > 0 {
            notes.extend(client.swap_problem().map(|why| format!("its last swap out failed: {why}")));
        }
        notes
    }

    pub(super) fn totals(&self, client: &Client) -> Totals {
        let observed = self.core.ledger.observed().get(&client.process());
        let seen = observed.map(|observed| *observed.counts()).unwrap_or_default();
        let paged = observed.map(Observed::paged).unwrap_or_default();
        Totals {
            application_seen: Totals::named(&seen.application),
            engine_seen: Totals::named(&seen.engine),
            lost: observed.map_or(0, Observed::lost),
            uvm_faults: paged.faults,
            uvm_bytes: paged.to_device + paged.to_host,
            uvm_cpu_faults: paged.cpu_faults,
            uvm_to_device: paged.to_device,
            ..self.unobserved_totals(client)
        }
    }

    /// Without what the observer sees, which begins with the agent: this is on the client's page, or was kept.
    pub(super) fn unobserved_totals(&self, client: &Client) -> Totals {
        let page = self.pages.get(&client.id()).map(|paged| super::seen::view(&paged.page));
        let calls = page.as_ref().map_or(*client.calls(), |page| page.calls);
        let holdings = page.map(|page| page.holdings).unwrap_or_default();
        let sum = |of: fn(&Holdings) -> Bytes| -> Bytes {
            holdings.iter().map(|(_, holdings)| Bytes(of(holdings).0.min(1 << 56))).sum()
        };
        Totals {
            application_calls: Totals::named(&calls.application),
            engine_calls: Totals::named(&calls.engine),
            copied_out: sum(|holdings| holdings.copied_out),
            copied_in: sum(|holdings| holdings.copied_in),
            clean: sum(|holdings| holdings.clean),
            stops: client.stops_total(),
            stalls: client.stalls_total(),
            swap_failures: client.swap_failures_total(),
            ..Totals::default()
        }
    }

    fn foreign(&self, process: Process, observed: &Observed, now: Moment) -> snapshot::Foreign {
        let devices = self.core.ledger.devices().values();
        let listed = devices.filter_map(|device| device.per_process().get(&process.pid).copied());
        let measured = listed.reduce(|sum, bytes| sum + bytes);
        let (books, paged) = (observed.for_people(measured), observed.paged());
        snapshot::Foreign {
            process,
            name: observed.name().to_owned(),
            owner: self.owners.owner(process),
            measured: measured.unwrap_or_default(),
            allocated: books.allocated,
            by_device: books
                .by_device
                .iter()
                .map(|(device, bytes)| (device.map_or("?".to_owned(), |device| device.to_string()), *bytes))
                .collect(),
            pooled: books.pooled,
            managed: books.managed,
            uvm_faults: paged.faults,
            uvm_cpu_faults: paged.cpu_faults,
            uvm_bytes: paged.to_device + paged.to_host,
            uvm_to_device: paged.to_device,
            inexact: books.inexact,
            idle_seconds: now.since(observed.last_launch()).as_secs_f64(),
            seen: Totals::named(&observed.counts().application),
        }
    }
}

fn activity(client: &Client, now: Moment) -> Activity {
    if client.exited().is_some() {
        Activity::Exited
    } else if client.dead().is_some() {
        Activity::Dead
    } else if client.session().is_none() {
        Activity::Disconnected
    } else if client.unyielding().is_some() {
        Activity::Unyielding
    } else if client.stop().is_some() {
        Activity::Stopping
    } else if client.wants().is_some() {
        Activity::Waiting
    } else if client.lease().is_none() {
        Activity::Stopped
    } else if client.busy(now) {
        Activity::Running
    } else {
        Activity::Idle
    }
}
