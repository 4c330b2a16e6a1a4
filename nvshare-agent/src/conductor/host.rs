//! Who gets how much host memory for shadows. Once clients on a device need more than there is, each gets arenas for all
//! that it may have to swap, ahead of need and within the budget.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nvshare_common::protocol::ToShim;
use nvshare_common::units::{ArenaId, Bytes, ClientId, DeviceId};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use super::core::{Command, Core};
use crate::hostmem::{self, Made, Maker, Order};
use crate::ledger::Client;
use crate::moment::Moment;
use crate::snapshot;

/// Arenas are at most this large: the first is there soon, and whole ones can be given back.
const LARGEST: Bytes = Bytes(1 << 30);
/// Arenas are multiples of the largest extent, so that packing wastes little.
const UNIT: Bytes = Bytes(64 << 20);
/// How many arenas of one client may be under way.
const AT_ONCE: usize = 2;
/// After a failure nothing is ordered for so long.
const PAUSE: Duration = Duration::from_secs(2);

/// Arenas on their way, and why there are no more.
pub(super) struct HostMemory {
    maker: Maker,
    ordered: BTreeMap<(ClientId, ArenaId), Bytes>,
    /// Sent and not yet mapped by the client: sealed once they are.
    unmapped: BTreeMap<(ClientId, ArenaId), Arc<OwnedFd>>,
    next: u64,
    not_before: Moment,
    trimmed: Moment,
    missing: Bytes,
    problem: Option<String>,
}

impl HostMemory {
    pub(super) fn start(now: Moment, tell: impl FnMut(Made) + Send + 'static) -> std::io::Result<HostMemory> {
        Ok(HostMemory {
            maker: Maker::start(tell)?,
            ordered: BTreeMap::new(),
            unmapped: BTreeMap::new(),
            // No number of a previous agent comes again while this machine is up.
            next: now.0,
            not_before: Moment::NEVER,
            trimmed: Moment::NEVER,
            missing: Bytes::ZERO,
            problem: None,
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
            let target = target(client, &contended);
            let under_way: Vec<Bytes> = self
                .ordered
                .iter()
                .filter(|((client, _), _)| client == id)
                .map(|(_, bytes)| *bytes)
                .collect();
            let have = client.arena_bytes() + under_way.iter().copied().sum();
            let lacks = target.saturating_sub(have);
            let piece = lacks.round_up(UNIT).unwrap_or(LARGEST).min(LARGEST);
            let fits = spent + piece <= core.settings.host_memory;
            let failed = self.not_before > now;
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
            if let Some(client) = core.ledger.client_mut(*id) {
                client.host_exhausted = exhausted;
            }
        }
        if refused {
            self.problem = Some(format!(
                "{} of host memory for shadows are missing: --host-memory ({}) is used up; raise it, or run less",
                self.missing, core.settings.host_memory
            ));
            commands.extend(self.trim(core, &contended, now));
        } else if self.missing == Bytes::ZERO {
            self.problem = None;
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
            let bytes = client.arena_bytes().saturating_sub(target(client, contended));
            let session = client.session.filter(|_| client.commandable() && bytes >= UNIT)?;
            Some(Command { client: client.id, session, message: ToShim::Trim { bytes } })
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
                if self.problem.is_none() {
                    tracing::warn!(%why, "no host memory for shadows");
                }
                self.problem = Some(why.to_string());
                self.not_before = now + PAUSE;
                return Vec::new();
            }
        };
        let session = core
            .ledger
            .client(client)
            .filter(|client| client.commandable())
            .and_then(|client| client.session);
        let Some(session) = session else { return Vec::new() };
        core.arena(client, arena, bytes, false);
        self.unmapped.insert((client, arena), Arc::clone(&descriptor));
        vec![(Command { client, session, message: ToShim::Arena { arena, bytes } }, descriptor)]
    }

    /// The client has mapped it: from now on nobody else can.
    pub(super) fn ready(&mut self, client: ClientId, arena: ArenaId) {
        if let Some(descriptor) = self.unmapped.remove(&(client, arena))
            && let Err(error) = hostmem::close_for_good(&*descriptor)
        {
            tracing::debug!(client = client.0, arena = arena.0, %error, "an arena could not be sealed for good");
        }
    }

    /// The client gave it back.
    pub(super) fn returned(&mut self, client: ClientId, arena: ArenaId) {
        self.unmapped.remove(&(client, arena));
    }

    /// The client's session or process is over: what it has not mapped goes.
    pub(super) fn left(&mut self, client: ClientId) {
        self.unmapped.retain(|(owner, _), _| *owner != client);
        self.ordered.retain(|(owner, _), _| *owner != client);
    }

    pub(super) fn snapshot(&self, core: &Core) -> snapshot::Host {
        snapshot::Host {
            budget: core.settings.host_memory,
            handed_out: core.ledger.clients().values().map(Client::arena_bytes).sum(),
            being_made: self.ordered.values().copied().sum(),
            missing: self.missing,
            problem: self.problem.clone(),
        }
    }
}

/// The devices on which clients need more than there is.
pub(super) fn contended(core: &Core) -> Vec<DeviceId> {
    // Who is swapped out by order takes no turns.
    let turns = |id| core.ledger.holdings(id).filter(|(client, _)| !client.held_out());
    let needs = |id: DeviceId| -> u64 { turns(id).map(|(_, holding)| holding.needed.0).sum() };
    let devices = core.ledger.devices().iter();
    devices
        .filter(|(id, device)| needs(**id) as i64 + device.room().0 as i64 > device.budget())
        .map(|(id, _)| *id)
        .collect()
}

/// How much host memory the client may come to need.
fn target(client: &Client, contended: &[DeviceId]) -> Bytes {
    if !client.commandable() || client.bypass {
        return Bytes::ZERO;
    }
    let movable = client.devices.iter().filter(|(id, _)| contended.contains(id) || client.held_out());
    let bytes: u64 = movable.map(|(_, holding)| holding.needed.saturating_sub(holding.immovable()).0).sum();
    if bytes == 0 {
        return Bytes::ZERO;
    }
    // Shadows do not fill an arena to its last block.
    Bytes(bytes + bytes / 16).round_up(UNIT).unwrap_or(Bytes(bytes))
}

/// The memory behind an arena that a client brought from an earlier session.
pub(super) fn measure(descriptor: impl AsFd) -> Result<Bytes, String> {
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let seals = fcntl_get_seals(&descriptor).map_err(|error| format!("not a memfd: {error}"))?;
    if !seals.contains(sealed) {
        return Err("not sealed against shrinking and growing".to_owned());
    }
    let status = fstat(&descriptor).map_err(|error| error.to_string())?;
    // What is allocated counts, not what it claims: holes cost nobody anything.
    Ok(Bytes(u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512).min(1 << 44)))
}
