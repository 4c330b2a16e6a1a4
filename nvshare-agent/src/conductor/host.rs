//! Who gets how much host memory for shadows. Once clients on a device need more than there is, each gets arenas for all
//! that it may have to swap, ahead of need and within the budget.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nvshare_agent_core::arena::Order;
use nvshare_agent_core::conductor::lack::Lack;
use nvshare_agent_core::conductor::{Command, Core};
use nvshare_agent_core::ledger::{Client, Device};
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::snapshot;
use nvshare_common::protocol::ToShim;
use nvshare_common::units::{ArenaId, Bytes, ClientId, DeviceId};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use crate::hostmem::{self, Made, Maker};

/// Arenas are at most this large: the first is there soon, and whole ones can be given back.
const LARGEST: Bytes = Bytes(1 << 30);
/// Arenas are multiples of the largest extent, so that packing wastes little.
const UNIT: Bytes = Bytes(64 << 20);
/// How many arenas of one client may be under way.
const AT_ONCE: usize = 2;
/// After a failure nothing is ordered for so long.
const PAUSE: Duration = Duration::from_secs(2);

/// How many arenas a client may bring.
const MOST_BROUGHT: u32 = 4096;
/// How long it may take to bring them.
const BRINGING: Duration = Duration::from_secs(1);
/// How long a client that could not use an arena gets no other.
const REFUSED: Duration = Duration::from_secs(30);

/// Arenas on their way, and why there are no more.
pub(super) struct HostMemory {
    maker: Maker,
    ordered: BTreeMap<(ClientId, ArenaId), Bytes>,
    /// Sent and not yet mapped by the client: sealed once they are.
    unmapped: BTreeMap<(ClientId, ArenaId), Arc<OwnedFd>>,
    /// Arenas of earlier sessions that are to come, and until when they are waited for.
    expected: BTreeMap<ClientId, (u32, Moment)>,
    /// The memory behind arenas of earlier sessions, by file, and who brought it.
    files: BTreeMap<(u64, u64), ClientId>,
    /// Clients that could not use an arena; they get no other before.
    refusals: BTreeMap<ClientId, Moment>,
    next: u64,
    not_before: Moment,
    trimmed: Moment,
    missing: Bytes,
    lack: Lack,
}

impl HostMemory {
    pub(super) fn start(now: Moment, tell: impl FnMut(Made) + Send + 'static) -> std::io::Result<HostMemory> {
        Ok(HostMemory {
            maker: Maker::start(tell)?,
            ordered: BTreeMap::new(),
            unmapped: BTreeMap::new(),
            expected: BTreeMap::new(),
            files: BTreeMap::new(),
            refusals: BTreeMap::new(),
            // No number of a previous agent comes again while this machine is up.
            next: now.0,
            not_before: Moment::NEVER,
            trimmed: Moment::NEVER,
            missing: Bytes::ZERO,
            lack: Lack::default(),
        })
    }

    /// Orders what is needed. Says whom to ask for memory back.
    pub(super) fn plan(&mut self, core: &mut Core, now: Moment) -> Vec<Command> {
        let contended = contended(core);
        let mut commands = Vec::new();
        let mut spent: Bytes = core.ledger.clients().values().map(Client::arena_bytes).sum();
        spent += self.ordered.values().copied().sum();
        let clients: Vec<ClientId> = core.ledger.clients().keys().copied().collect();
        self.missing = Bytes::ZERO;
        let mut refused = false;
        for id in &clients {
            let Some(client) = core.ledger.client(*id) else { continue };
            // It may bring arenas from an earlier session: what it lacks is known when they have come.
            if self.comes_with_arenas(*id, client, now) {
                continue;
            }
            let target = target(core, client, &contended);
            let under_way: Vec<Bytes> = self
                .ordered
                .iter()
                .filter(|((client, _), _)| client == id)
                .map(|(_, bytes)| *bytes)
                .collect();
            let have = client.arena_bytes() + under_way.iter().copied().sum();
            let lacks = target.saturating_sub(have);
            // The last of the budget is better than nothing.
            let left = Bytes(core.settings.host_memory.saturating_sub(spent).0 / UNIT.0 * UNIT.0);
            let piece = lacks.round_up(UNIT).unwrap_or(LARGEST).min(LARGEST).min(left);
            let fits = piece > Bytes::ZERO;
            let failed = self.not_before > now || self.refusals.get(id).is_some_and(|until| *until > now);
            let exhausted = lacks > Bytes::ZERO && (!fits || failed) && under_way.is_empty();
            if lacks > Bytes::ZERO && !fits {
                refused = true;
            }
            if lacks > Bytes::ZERO && (!fits || failed) {
                self.missing += lacks;
            } else if lacks > Bytes::ZERO && under_way.len() < AT_ONCE {
                self.next += 1;
                let order = Order { client: *id, arena: ArenaId(self.next), bytes: piece };
                self.ordered.insert((*id, order.arena), piece);
                self.maker.order(order);
                spent += piece;
            }
            core.ledger.host_exhausted(*id, exhausted);
        }
        if refused {
            self.lack.budget(core.settings.host_memory);
            commands.extend(self.trim(core, &contended, now));
        } else if self.missing == Bytes::ZERO {
            self.lack.over();
        }
        commands
    }

    /// Asks those back who have more than they may need.
    fn trim(&mut self, core: &Core, contended: &[DeviceId], now: Moment) -> Vec<Command> {
        if now.since(self.trimmed) < Duration::from_secs(5) {
            return Vec::new();
        }
        self.trimmed = now;
        let excess = |client: &Client| {
            let bytes = client.arena_bytes().saturating_sub(target(core, client, contended));
            let session = client.session().filter(|_| client.commandable() && bytes >= UNIT)?;
            Some(Command { client: client.id(), session, message: ToShim::Trim { bytes } })
        };
        core.ledger.clients().values().filter_map(excess).collect()
    }

    /// An order was answered: what there is to send.
    pub(super) fn made(&mut self, core: &mut Core, made: Made, now: Moment) -> Vec<(Command, Arc<OwnedFd>)> {
        let Order { client, arena, bytes } = made.order;
        if self.ordered.remove(&(client, arena)).is_none() {
            return Vec::new();
        }
        let descriptor = match made.arena {
            Ok(descriptor) => Arc::new(descriptor),
            Err(why) => {
                if self.lack.node(&why) {
                    tracing::warn!(%why, "no host memory for shadows");
                }
                self.not_before = now + PAUSE;
                return Vec::new();
            }
        };
        let session =
            core.ledger.client(client).filter(|client| client.commandable()).and_then(Client::session);
        let Some(session) = session else { return Vec::new() };
        core.ledger.arena(client, arena, bytes, false);
        self.unmapped.insert((client, arena), Arc::clone(&descriptor));
        vec![(Command { client, session, message: ToShim::Arena { arena, bytes } }, descriptor)]
    }

    /// A session begins: what an earlier one had under way is void, and so many arenas come with it.
    pub(super) fn opened(&mut self, client: ClientId, arenas: u32, now: Moment) {
        self.left(client);
        if arenas > 0 {
            self.expected.insert(client, (arenas.min(MOST_BROUGHT), now + BRINGING));
        }
    }

    fn comes_with_arenas(&self, id: ClientId, client: &Client, now: Moment) -> bool {
        let expected = self.expected.get(&id);
        expected.is_some_and(|(arenas, until)| client.arenas().len() < *arenas as usize && now < *until)
    }

    /// The client brought an arena from an earlier session. It counts if it is one of those that it spoke of and nobody has
    /// brought it before, and for no more than the client could use.
    pub(super) fn brought(
        &mut self,
        core: &mut Core,
        client: ClientId,
        arena: ArenaId,
        descriptor: Option<&OwnedFd>,
    ) -> Result<(), String> {
        let holder = core.ledger.client(client).ok_or("of nobody")?;
        let expected = self.expected.get(&client).map_or(0, |(arenas, _)| *arenas as usize);
        if holder.arenas().len() >= expected || holder.arenas().contains_key(&arena) {
            return Err("one too many".to_owned());
        }
        let (bytes, file) = measure(descriptor.ok_or("no descriptor")?)?;
        if self.files.insert(file, client).is_some() {
            return Err("brought already".to_owned());
        }
        let most = most(core, holder).saturating_sub(holder.arena_bytes());
        core.ledger.arena(client, arena, bytes.min(most), true);
        Ok(())
    }

    /// The client has mapped it: from now on nobody else can.
    pub(super) fn ready(&mut self, client: ClientId, arena: ArenaId) {
        if let Some(descriptor) = self.unmapped.remove(&(client, arena))
            && let Err(error) = hostmem::close_for_good(&*descriptor)
        {
            tracing::debug!(client = client.0, arena = arena.0, %error, "an arena could not be sealed for good");
        }
    }

    /// The client gave it back. One that it never used it could not use: others would fare no better now.
    pub(super) fn returned(&mut self, client: ClientId, arena: ArenaId, now: Moment) {
        if self.unmapped.remove(&(client, arena)).is_some() {
            self.refusals.insert(client, now + REFUSED);
        }
    }

    /// The client's session or process is over: what it has not mapped goes.
    pub(super) fn left(&mut self, client: ClientId) {
        self.unmapped.retain(|(owner, _), _| *owner != client);
        self.ordered.retain(|(owner, _), _| *owner != client);
        self.expected.remove(&client);
        self.files.retain(|_, owner| *owner != client);
        self.refusals.remove(&client);
    }

    pub(super) fn snapshot(&self, core: &Core) -> snapshot::Host {
        snapshot::Host {
            budget: core.settings.host_memory,
            handed_out: core.ledger.clients().values().map(Client::arena_bytes).sum(),
            being_made: self.ordered.values().copied().sum(),
            missing: self.missing,
            problem: self.lack.why(),
        }
    }
}

/// The devices on which clients need more than there is.
pub(super) fn contended(core: &Core) -> Vec<DeviceId> {
    // Who is swapped out by order takes no turns.
    let turns = |id| core.ledger.holdings(id).filter(|(client, _)| !client.held_out());
    let needs = |id: DeviceId| -> u64 { turns(id).map(|(_, holding)| holding.needed().0).sum() };
    let devices = core.ledger.devices().iter();
    devices
        .filter(|(id, device)| needs(**id) as i64 + device.room().0 as i64 > device.budget())
        .map(|(id, _)| *id)
        .collect()
}

/// How much host memory the client may come to need: no more than the devices have, whatever it says that it needs.
fn target(core: &Core, client: &Client, contended: &[DeviceId]) -> Bytes {
    if !client.commandable() || client.bypass() {
        return Bytes::ZERO;
    }
    let movable = client.devices().iter().filter(|(id, _)| contended.contains(id) || client.held_out());
    let most = |id: &DeviceId| core.ledger.device(*id).map(Device::capacity).unwrap_or_default();
    let moves =
        movable.map(|(id, holding)| holding.needed().min(most(id)).saturating_sub(holding.immovable()).0);
    let bytes: u64 = moves.sum();
    if bytes == 0 {
        return Bytes::ZERO;
    }
    // Shadows do not fill an arena to its last block.
    Bytes(bytes + bytes / 16).round_up(UNIT).unwrap_or(Bytes(bytes))
}

/// The most host memory that the client could use with all of its memory swapped out.
fn most(core: &Core, client: &Client) -> Bytes {
    let needed = client.devices().iter().map(|(id, holding)| {
        let capacity = core.ledger.device(*id).map(Device::capacity).filter(|bytes| *bytes > Bytes::ZERO);
        // Nothing is known of a device before it is read.
        holding.needed().min(capacity.unwrap_or(holding.needed())).0
    });
    let bytes: u64 = needed.sum();
    Bytes(bytes + bytes / 16).round_up(LARGEST).unwrap_or(Bytes(bytes))
}

/// The memory behind an arena that a client brought from an earlier session, and which file it is.
fn measure(descriptor: impl AsFd) -> Result<(Bytes, (u64, u64)), String> {
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let seals = fcntl_get_seals(&descriptor).map_err(|error| format!("not a memfd: {error}"))?;
    if !seals.contains(sealed) {
        return Err("not sealed against shrinking and growing".to_owned());
    }
    let status = fstat(&descriptor).map_err(|error| error.to_string())?;
    // What is allocated counts, not what it claims: holes cost nobody anything.
    let bytes = Bytes(u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512).min(1 << 44));
    Ok((bytes, (status.st_dev, status.st_ino)))
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::arena::HostError;
    use nvshare_agent_core::ledger::SessionId;
    use nvshare_agent_core::process::Process;
    use nvshare_agent_core::reading::{Reading, Report};
    use nvshare_agent_core::settings::Settings;

    use crate::health::{Health, Part};
    use crate::log::tests::written;
    use nvshare_common::protocol::{Held, Hello};
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;

    const CARD: DeviceId = DeviceId([7; 16]);
    const NOW: Moment = Moment(1_000_000_000);

    /// A client that needs much more than the card has, and another one, so that it is contended.
    fn node(needed: Bytes, arenas: u32) -> (HostMemory, Core, ClientId) {
        let settings = Settings { host_memory: Bytes(64 << 30), ..Settings::default() };
        let mut core = Core::new(settings);
        let reading = Reading {
            device: CARD,
            index: 0,
            name: String::new(),
            total: Bytes(4 << 30),
            link: None,
            used: Bytes::ZERO,
            per_process: BTreeMap::new(),
        };
        core.devices(&Report { began: NOW, devices: vec![reading], complete: true, problem: None }, NOW);
        let mut client = ClientId(0);
        for (pid, needed) in [(1, Bytes(4 << 30)), (2, needed)] {
            let held = Held { device: CARD, granted: Bytes::ZERO, resident: Bytes::ZERO, total: needed };
            let hello =
                Hello { release: String::new(), running: false, devices: vec![held], arenas, bypass: false };
            client = core.hello(Process { pid, start: 1 }, SessionId(u64::from(pid)), &hello, NOW);
        }
        let mut host = HostMemory::start(NOW, |_| ()).unwrap();
        host.opened(client, arenas, NOW);
        (host, core, client)
    }

    fn arena(bytes: u64) -> OwnedFd {
        let file = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, bytes).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        file
    }

    #[test]
    fn an_arena_from_an_earlier_session_counts_once_and_only_if_it_was_spoken_of() {
        let (mut host, mut core, client) = node(Bytes(4 << 30), 2);
        let (one, other, third) = (arena(4096), arena(4096), arena(4096));
        let mut bring = |id, file| host.brought(&mut core, client, ArenaId(id), file);
        bring(1, Some(&one)).unwrap();
        assert!(bring(2, Some(&one)).unwrap_err().contains("already"));
        assert!(bring(1, Some(&other)).unwrap_err().contains("many"));
        assert!(bring(2, None).is_err());
        bring(2, Some(&other)).unwrap();
        assert!(bring(3, Some(&third)).unwrap_err().contains("many"));
        assert_eq!(core.ledger.client(client).unwrap().arena_bytes(), Bytes(8192));
    }

    #[test]
    fn nothing_is_ordered_for_whoever_comes_with_arenas_before_they_have_come() {
        let (mut host, mut core, client) = node(Bytes(4 << 30), 1);
        let ordered = |host: &HostMemory| host.ordered.keys().any(|(owner, _)| *owner == client);
        host.plan(&mut core, NOW);
        assert!(!ordered(&host));
        host.plan(&mut core, NOW + BRINGING);
        assert!(ordered(&host));
    }

    #[test]
    fn no_client_needs_more_host_memory_than_the_devices_have() {
        let (_, core, client) = node(Bytes(1 << 48), 0);
        let target = target(&core, core.ledger.client(client).unwrap(), &contended(&core));
        assert!(target > Bytes(4 << 30) && target < Bytes(5 << 30), "{target}");
    }

    #[test]
    fn a_client_that_cannot_use_an_arena_gets_no_other_for_a_while() {
        let (mut host, mut core, client) = node(Bytes(4 << 30), 0);
        host.plan(&mut core, NOW);
        let ((_, arena_id), bytes) =
            host.ordered.iter().find(|((owner, _), _)| *owner == client).map(|(k, b)| (*k, *b)).unwrap();
        let order = Order { client, arena: arena_id, bytes };
        host.made(&mut core, Made { order, arena: Ok(arena(4096)) }, NOW);
        let ordered = |host: &HostMemory| host.ordered.keys().filter(|(owner, _)| *owner == client).count();
        core.ledger.arena_returned(client, arena_id);
        host.returned(client, arena_id, NOW);
        let before = ordered(&host);
        host.plan(&mut core, NOW);
        assert!(ordered(&host) <= before);
        assert!(core.ledger.client(client).unwrap().host_exhausted() || before > 0);
        host.plan(&mut core, NOW + REFUSED);
        assert!(ordered(&host) > before);
    }

    fn no_room(free: Bytes) -> HostError {
        HostError::NoRoom { bytes: Bytes::GIB, free, margin: Bytes::GIB, whose: "the node's" }
    }

    #[test]
    fn a_lack_of_another_sum_is_not_another_line_in_the_log_and_another_cause_is() {
        let log = written(|| {
            let (mut lack, health) = (Lack::default(), Health::new());
            let tell = |lack: &Lack| health.missing(Part::HostMemory, &lack.why().unwrap());
            for free in 1..5 {
                assert_eq!(lack.node(&no_room(Bytes(free << 20))), free == 1);
                tell(&lack);
            }
            lack.budget(Bytes(64 << 30));
            tell(&lack);
            lack.over();
            assert_eq!(lack.why(), None);
        });
        assert_eq!(log.matches("running without a part").count(), 2, "{log}");
        assert!(
            log.contains("1 MiB of host memory are available") && log.contains("(64 GiB) is used up"),
            "{log}"
        );
    }
}
