//! Orders for one client: refused where they cannot be carried out, with the reason and what to do instead; booked in the
//! ledger otherwise, for the policy to respect.

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId};

use super::Core;
use crate::ledger::{Client, Holding, Ledger};
use crate::moment::Moment;
use crate::order::{Order, What};

/// How many clients an error lists.
const LISTED: usize = 20;

impl Core {
    /// Books an order. The error is for whoever gave it.
    pub fn order(&mut self, order: Order, now: Moment) -> Result<(), String> {
        let Some(client) = self.ledger.client(order.client).filter(|client| client.exited().is_none()) else {
            return Err(unknown(&self.ledger, order.client));
        };
        match order.what {
            What::SwapOut => may_swap_out(client),
            What::Pin(true) => may_pin(&self.ledger, client),
            _ => Ok(()),
        }?;
        tracing::info!(client = client.id().0, pid = client.process().pid, what = ?order.what, "order");
        self.ledger.order(order, now);
        Ok(())
    }
}

fn unknown(ledger: &Ledger, client: ClientId) -> String {
    let living: Vec<String> = ledger
        .clients()
        .values()
        .filter(|client| client.exited().is_none())
        .map(|client| format!("{} (pid {})", client.id().0, client.process().pid))
        .collect();
    let more =
        if living.len() > LISTED { format!(" and {} more", living.len() - LISTED) } else { String::new() };
    let there = match living.as_slice() {
        [] => "no client is connected".to_owned(),
        some => format!("there are {}{more}", some[..some.len().min(LISTED)].join(", ")),
    };
    format!("there is no client {}: {there}", client.0)
}

fn may_swap_out(client: &Client) -> Result<(), String> {
    let id = client.id().0;
    if client.orders().pinned {
        return Err(format!("client {id} is pinned: `nvshare-agent unpin {id}` first"));
    }
    if let Some(why) = client.dead() {
        return Err(format!(
            "client {id} cannot be swapped out: its device failed ({why}); its memory comes back when it ends"
        ));
    }
    if client.session().is_none() {
        return Err(format!(
            "client {id} cannot be swapped out: it is not connected; wait until it is, or end it"
        ));
    }
    if client.bypass() {
        return Err(format!(
            "client {id} cannot be swapped out: it makes driver calls that its shim does not see, so that its memory is \
             never moved; its memory comes back when it ends"
        ));
    }
    if client.unyielding().is_some() {
        return Err(format!(
            "client {id} cannot be swapped out: it does not yield (its work on the device makes no progress, or it does \
             not answer); try again later, or end it"
        ));
    }
    Ok(())
}

fn may_pin(ledger: &Ledger, client: &Client) -> Result<(), String> {
    let id = client.id().0;
    if client.held_out() {
        return Err(format!("client {id} is swapped out by order: `nvshare-agent swap in {id}` first"));
    }
    for (device, holding) in client.devices() {
        if let Some((most, pinned)) = beside_pinned(ledger, *device, id)
            && holding.claimed() > most
        {
            let beside = match pinned.as_slice() {
                [] => String::new(),
                some => format!(" and what is pinned (client {})", some.join(", ")),
            };
            return Err(format!(
                "client {id} needs {} on {device}, where {most} are left beside what cannot be moved{beside}: it would \
                 never run, or the others would not; unpin one of them, or free memory there",
                holding.claimed()
            ));
        }
    }
    Ok(())
}

/// What is left of `device` beside pinned clients and what stays there for good, and who is pinned. None: the device is
/// not known yet.
fn beside_pinned(ledger: &Ledger, device: DeviceId, but: u64) -> Option<(Bytes, Vec<String>)> {
    let at = ledger.device(device)?;
    let (mut left, mut pinned) = (at.promised(), Vec::new());
    for (other, holding) in ledger.holdings(device).filter(|(other, _)| other.id().0 != but) {
        if other.orders().pinned {
            left -= holding.claimed().0 as i64;
            pinned.push(other.id().0.to_string());
        } else if other.movable() {
            left -= holding.immovable().0 as i64;
        } else {
            left -= holding.booked().0 as i64;
        }
    }
    Some((Bytes(left.max(0) as u64), pinned))
}

/// What orders mean for the client now, for people.
pub fn notes(client: &Client, now: Moment) -> Vec<String> {
    let mut notes = Vec::new();
    let id = client.id().0;
    if let Some(since) = client.orders().held_out {
        let seconds = now.since(since).as_secs();
        let waits = if client.wants().is_some() { ", and wants to run" } else { "" };
        notes.push(format!(
            "swapped out by the administrator's order {seconds} s ago{waits}: `nvshare-agent swap in {id}` undoes that"
        ));
    }
    if let Some(limit) = client.orders().limit {
        let most = client.devices().values().map(Holding::needed).max().unwrap_or_default();
        if most > limit {
            notes.push(format!(
                "uses {most} of a device, more than the {limit} it may have by order: it keeps that, and gets no more; \
                 `nvshare-agent set limit {id} none` undoes that"
            ));
        }
    }
    notes
}

#[cfg(test)]
mod tests {
    use nvshare_common::protocol::{Held, Hello};

    use super::*;
    use crate::ledger::SessionId;
    use crate::process::Process;
    use crate::settings::Settings;

    #[test]
    fn who_waits_by_order_hears_who_ordered_it_and_how_to_undo_it() {
        let mut core = Core::new(Settings::default());
        let device = DeviceId([1; 16]);
        let held = Held { device, granted: Bytes::GIB, resident: Bytes::GIB, total: Bytes::GIB };
        let hello =
            Hello { release: "0".to_owned(), running: true, devices: vec![held], arenas: 0, bypass: false };
        let id = core.hello(Process { pid: 7, start: 1 }, SessionId(1), &hello, Moment(1));
        let notes_of = |core: &Core, now| notes(core.ledger.client(id).unwrap(), now);
        assert_eq!(notes_of(&core, Moment(2)), Vec::<String>::new());

        core.order(Order { client: id, what: What::SwapOut }, Moment(1)).unwrap();
        core.ledger.wants(id, Moment(1));
        let said = notes_of(&core, Moment(90_000_000_001));
        assert_eq!(said.len(), 1);
        for part in ["administrator", "90 s ago", "wants to run", "`nvshare-agent swap in 1`"] {
            assert!(said[0].contains(part), "`{}` says nothing of {part}", said[0]);
        }

        core.order(Order { client: id, what: What::Limit(Some(Bytes::MIB)) }, Moment(2)).unwrap();
        let said = notes_of(&core, Moment(2));
        assert!(said[1].contains("1 GiB") && said[1].contains("set limit 1 none"), "{said:?}");
        core.order(Order { client: id, what: What::SwapIn }, Moment(3)).unwrap();
        core.order(Order { client: id, what: What::Limit(None) }, Moment(3)).unwrap();
        assert_eq!(notes_of(&core, Moment(4)), Vec::<String>::new());
    }
}
