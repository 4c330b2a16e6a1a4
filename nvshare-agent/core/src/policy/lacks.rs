//! What clients that run lack of what they need, and how much of that may be granted at once.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::gangs::Gang;
use crate::ledger::Client;
use crate::moment::Moment;

/// Memory is granted in multiples of this, unless it is the last piece.
pub(super) const PIECE: u64 = 2 << 20;

/// A client that is to get memory on a device.
pub(super) struct Lack {
    pub(super) client: ClientId,
    pub(super) bytes: Bytes,
    /// What it will probably ask for next, for it grows: taken from who does not run, and given where it is free.
    pub(super) ahead: Bytes,
}

/// What the gang's members lack on `device`.
pub(super) fn lacks(gang: &Gang, device: DeviceId, now: Moment) -> Vec<Lack> {
    let lack = |client: &&Client| {
        let holding = client.devices().get(&device)?;
        let bytes = holding.needed().saturating_sub(holding.granted());
        (client.commandable() && bytes > Bytes::ZERO && holding.outgoing().is_none()).then_some(Lack {
            client: client.id(),
            bytes,
            ahead: holding.growing(now),
        })
    };
    gang.members.iter().filter_map(lack).collect()
}

/// As much of `lack` as `left` allows, in whole pieces.
pub(super) fn part(lack: Bytes, left: i64) -> Bytes {
    let left = left.max(0) as u64;
    if lack.0 <= left { lack } else { Bytes(left / PIECE * PIECE) }
}
