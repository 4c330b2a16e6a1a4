//! What the policy decides and the ledger books.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId, Ticket};

use crate::moment::Moment;

/// A client's memory on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Whose memory.
    pub client: ClientId,
    /// The device it is on.
    pub device: DeviceId,
}

/// Something to be done. The conductor books it in the ledger and sends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// The client gets the lease, which ends at this moment at the latest, if somebody's turn is near.
    Run(ClientId, Option<Moment>),
    /// The lease that the client has, or just gets, is out of turn, after a long wait: it begins now.
    Age(ClientId),
    /// The client gives up the lease.
    Stop {
        /// Whose lease ends.
        client: ClientId,
        /// Who gains by that.
        gains: Option<ClientId>,
    },
    /// The client's grant there grows by so much.
    Grant(At, Bytes),
    /// The client, which is stopped, gives memory back.
    SwapOut {
        /// Whose memory, and from which device.
        at: At,
        /// So much of it leaves.
        bytes: Bytes,
        /// Who gains by that.
        gains: Option<ClientId>,
    },
    /// The client gives back what it does not use there: so much, as it is expected.
    Reclaim(At, Bytes),
    /// A driver's request for room is answered.
    Room {
        /// Whose driver asked.
        client: ClientId,
        /// By which request.
        ticket: Ticket,
        /// Whether there is room.
        made: bool,
    },
    /// Somebody is to get memory, and NVML has to confirm first that it is there.
    Read,
}
