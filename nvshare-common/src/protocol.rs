//! The conversation between a shim and the agent, version [`VERSION`].
//!
//! It carries obligations: what a client may hold, and what it gave back. A session begins with [`Hello`] and
//! [`Answer`] (see [`crate::frame`], their framing never changes); then both sides send the messages below. The
//! transport (`SOCK_SEQPACKET`) keeps order and boundaries, so a grant is a plain increment: the agent's view of a
//! balance is the shim's plus what is in flight, never less. After a reconnect the balance in `Hello` is the truth.
//!
//! A client runs (its gate is open) when it holds the lease (`Run`, until `Stop`), and all its extents are resident.

use serde::{Deserialize, Serialize};

use crate::bytes::{Bytes, DeviceRange};
use crate::ids::{ArenaId, ClientId, DeviceId, Ticket};

/// The protocol spoken by this build.
pub const VERSION: u16 = 1;
/// The oldest protocol that this build still understands.
pub const OLDEST: u16 = 1;

/// Where the agent listens for clients. A *directory* is mounted into pods, read-only.
pub const SOCKET: &str = "/run/nvshare/agent.sock";

/// What the agent sends into a socket that it took from a client (see [`crate::counters::Counters::door`]), before any `Hello`.
/// Agents that follow one another may each knock, so that a client may hear a knock at any time: it is no message, and says
/// nothing but that somebody is there.
pub const KNOCK: &[u8] = b"\xff\xffnvshare knocks";

/// A shim's first message; the descriptor of its counter page ([`crate::counters`]) travels with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The shim's release, for people.
    pub release: String,
    /// Whether the client's gate is open now: it never met an agent, or holds the lease of a previous one.
    pub running: bool,
    /// An agent once found driver work that did not pass the shim ([`ToShim::Bypassed`]): it holds for the life of the
    /// process, and a new agent cannot find it out again.
    pub bypass: bool,
    /// What it holds. Devices that did not fit into the counter page are absent: they run as without an agent.
    pub devices: Vec<Held>,
    /// How many [`ToAgent::ArenaHeld`] follow at once, each with its descriptor.
    pub arenas: u32,
}

/// What a client holds on one device when it says `Hello`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// Which device.
    pub device: DeviceId,
    /// The balance of its grant: at least what is resident, except for what it allocated without an agent.
    pub granted: Bytes,
    /// Extents with memory behind them, and memory that cannot be moved.
    pub resident: Bytes,
    /// Everything it needs resident in order to run.
    pub total: Bytes,
}

/// The agent's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// The session stands.
    Welcome {
        /// The agent's number for this client.
        client: ClientId,
        /// The first [`ToShim::Limit`] of each device, so that the first question for memory is answered by them.
        limits: Vec<(DeviceId, Bytes)>,
        /// The first [`ToShim::Size`] of each device.
        sizes: Vec<(DeviceId, Bytes)>,
    },
    /// No session; the client runs bare. Says why, with both versions where that is the reason.
    Refused {
        /// For the log of the client.
        why: String,
    },
}

/// What a client needs room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// Threads wait at the gate.
    Work,
    /// Nobody waits yet: the client allocated, and would like the memory before it needs it.
    Allocation,
}

/// Shim to agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// The process uses `device` from now on, and has a context there already. It is answered by [`ToShim::Limit`], which
    /// counts that context, or by [`ToShim::Unmanaged`].
    Met {
        /// Which.
        device: DeviceId,
    },
    /// An arena of a previous session, its descriptor attached.
    ArenaHeld {
        /// Its number.
        arena: ArenaId,
    },
    /// To go on, `total` bytes must be resident on `device`, and the client must hold the lease.
    Want {
        /// Where.
        device: DeviceId,
        /// All extents and all memory that cannot be moved; not an increment.
        total: Bytes,
        /// How urgently.
        purpose: Purpose,
    },
    /// A driver call wants about `bytes` for itself (a context, a module, a graph, an array) and failed or may fail.
    WantRoom {
        /// The shim's number for this request.
        ticket: Ticket,
        /// Where.
        device: DeviceId,
        /// How much, estimated.
        bytes: Bytes,
    },
    /// The gate is closed and the work submitted before is finished.
    Stopped {
        /// Of the `Stop`.
        ticket: Ticket,
    },
    /// The work in flight made no progress; the gate is open again and nothing was moved.
    DrainStalled {
        /// Of the `Stop`.
        ticket: Ticket,
    },
    /// The grant shrinks by `bytes`: that much memory was given back to the driver, or was never used.
    Released {
        /// Of the `SwapOut` or `Reclaim`; none when the client gave back by itself.
        ticket: Option<Ticket>,
        /// Where.
        device: DeviceId,
        /// By how much the grant shrinks.
        bytes: Bytes,
    },
    /// A `SwapOut` or `Reclaim` is finished; all of its `Released` came before.
    SwapOutDone {
        /// Of the command.
        ticket: Ticket,
        /// Bytes that crossed the link for it.
        copied: Bytes,
        /// Bytes released without a copy.
        clean: Bytes,
    },
    /// A `SwapOut` could not give back all it was asked for; what it could not is still resident and granted.
    SwapFailed {
        /// Of the command.
        ticket: Ticket,
        /// For the operator.
        why: String,
    },
    /// Every extent on `device` is resident (again).
    Resident {
        /// Where.
        device: DeviceId,
        /// Bytes that crossed the link since the last `Resident`.
        copied: Bytes,
    },
    /// The client holds memory that cannot be moved; the figure replaces the previous one for this reason.
    Unswappable {
        /// Where.
        device: DeviceId,
        /// All bytes held for this reason.
        bytes: Bytes,
        /// A short fixed text: a metric label (`array`, `exported`, `imported`, `peer`, `graph`, ...).
        reason: String,
    },
    /// The arena is mapped and registered; it may now be sealed for good.
    ArenaReady {
        /// Which.
        arena: ArenaId,
    },
    /// The arena is unmapped and its descriptor closed.
    ArenaReturned {
        /// Which.
        arena: ArenaId,
    },
    /// A device error made every call of this client fail; its gate is open until it says `Revived`, or exits.
    Dead {
        /// The error's name.
        why: String,
    },
    /// May the client come to need `total` on `device`? Asked before a promise is made: after a context was made, and for an
    /// allocation near the limit. Answered with [`ToShim::Room`] from a reading that began after this came, the limit
    /// that follows from it told before.
    MayHave {
        /// The shim's number for this question; never one of a `WantRoom`.
        ticket: Ticket,
        /// Where.
        device: DeviceId,
        /// All extents and all memory that cannot be moved.
        total: Bytes,
    },
    /// The contexts that had failed are gone, and the client goes on as before the error.
    Revived,
}

/// Agent to shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToShim {
    /// The agent does not manage `device` (now): this process runs there as without an agent, and brings back itself what
    /// it has swapped out there. A `Limit` or `Grant` for it that comes later means that it is managed after all, which
    /// begins with a new `Hello`.
    Unmanaged {
        /// Where.
        device: DeviceId,
        /// For the log of the client.
        why: String,
    },
    /// Driver work was seen that did not pass the shim: memory of this process is never moved again, whoever orders it.
    Bypassed,
    /// The most this client can hold on `device` beside what others hold there for good, its context and other overhead not
    /// counted: beyond it an allocation fails at once. It moves with what is held for good.
    Limit {
        /// Where.
        device: DeviceId,
        /// Bytes; replaces the previous figure.
        bytes: Bytes,
    },
    /// The grant grows by `bytes`.
    Grant {
        /// Where.
        device: DeviceId,
        /// By how much.
        bytes: Bytes,
    },
    /// The client holds the lease until `Stop`.
    Run,
    /// Close the gate, drain; answer `Stopped` or `DrainStalled`.
    Stop {
        /// For the answer.
        ticket: Ticket,
        /// After how long without a single completion the drain counts as stalled, in milliseconds.
        stall_ms: u32,
    },
    /// Whether somebody waits for the card: while that is so, keep the work in flight short, so that a drain does not
    /// have to wait for a queue of a thousand kernels.
    Pace {
        /// From now on.
        on: bool,
    },
    /// Give `bytes` of the grant back: what is not used first, then by swapping out. The client is stopped.
    SwapOut {
        /// For the answers.
        ticket: Ticket,
        /// Where.
        device: DeviceId,
        /// How much.
        bytes: Bytes,
        /// Ranges seen least recently by the agent, coldest first; a hint.
        coldest: Vec<DeviceRange>,
    },
    /// Give back what is granted and not used; the client is not stopped.
    Reclaim {
        /// For the answers.
        ticket: Ticket,
        /// Where.
        device: DeviceId,
    },
    /// Host memory for shadows; its descriptor is attached.
    Arena {
        /// Its number.
        arena: ArenaId,
        /// Its size.
        bytes: Bytes,
    },
    /// Give back about this much host memory: shadows of resident extents, whole arenas.
    Trim {
        /// How much.
        bytes: Bytes,
    },
    /// The answer to `WantRoom`: room was made (or there was no need), or cannot be made. And to `MayHave`.
    Room {
        /// Of the request.
        ticket: Ticket,
        /// Whether trying again is worth it.
        made: bool,
    },
    /// How large `device` is to this client where that is less than the device: a capacity, or an ordered limit. What
    /// `cuMemGetInfo` and all others call total; a process to which a size was told once keeps that.
    Size {
        /// Where.
        device: DeviceId,
        /// Bytes; replaces the previous figure.
        bytes: Bytes,
    },
}
