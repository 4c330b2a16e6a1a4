//! What the policy decides and the ledger books.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId, Ticket};

use crate::moment::Moment;

/// Something to be done. The conductor books it in the ledger and sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The client gets the lease.
    Run {
        /// Who.
        client: ClientId,
        /// The lease ends at this moment at the latest: somebody's turn is near.
        cap: Option<Moment>,
    },
    /// The lease that the client has, or just gets, is out of turn, after a long wait: it begins now.
    Favour {
        /// Who.
        client: ClientId,
    },
    /// The client gives up the lease.
    Stop {
        /// Who.
        client: ClientId,
        /// Who gains.
        gains: Option<ClientId>,
    },
    /// The client's grant grows.
    Grant {
        /// Who.
        client: ClientId,
        /// Where.
        device: DeviceId,
        /// By how much.
        bytes: Bytes,
    },
    /// The client, which is stopped, gives memory back.
    SwapOut {
        /// Who.
        client: ClientId,
        /// Where.
        device: DeviceId,
        /// How much.
        bytes: Bytes,
        /// Who gains.
        gains: Option<ClientId>,
    },
    /// The client gives back what it does not use.
    Reclaim {
        /// Who.
        client: ClientId,
        /// Where.
        device: DeviceId,
        /// How much that may be.
        expected: Bytes,
    },
    /// A driver's request for room is answered.
    Room {
        /// Whose.
        client: ClientId,
        /// Which.
        ticket: Ticket,
        /// Whether there is room.
        made: bool,
    },
    /// Somebody is to get memory, and NVML has to confirm first that it is there.
    Read,
}
