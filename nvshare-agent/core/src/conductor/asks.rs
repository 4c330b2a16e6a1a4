//! Questions of clients whether they may come to need so much: answered from a reading that began after the question came, so
//! that what a client promises to its program counts the context, module or neighbour of a moment ago.

use std::collections::BTreeMap;
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ClientId, DeviceId, Ticket};
use nvshare_common::protocol::ToShim;

use super::Command;
use crate::ledger::{Ledger, SessionId};
use crate::moment::Moment;

/// How long a question waits for its reading; then it is answered by what is known. A shim waits a little longer.
const PATIENCE: Duration = Duration::from_millis(1500);
/// How many questions one client may have open: a thread of it waits for each.
const AT_ONCE: usize = 64;

/// One question.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask {
    pub(super) client: ClientId,
    pub(super) session: SessionId,
    pub(super) ticket: Ticket,
    pub(super) device: DeviceId,
    pub(super) total: Bytes,
    pub(super) since: Moment,
}

/// The questions that are not answered yet.
#[derive(Debug, Default)]
pub(super) struct Asks(Vec<Ask>);

impl Asks {
    /// A client asks. Who asks too often at once gets no answer, and then does as it likes.
    pub(super) fn open(&mut self, ask: Ask) {
        if self.0.iter().filter(|other| other.client == ask.client).count() < AT_ONCE {
            self.0.push(ask);
        }
    }

    /// The answers that can be given now, and whether others wait for a reading.
    pub(super) fn answer(&mut self, ledger: &mut Ledger, now: Moment) -> (Vec<Command>, bool) {
        // All clients may ask at once: what is the same for all of them is summed up once a device.
        let mut stays: BTreeMap<DeviceId, Bytes> = BTreeMap::new();
        let mut limit = |ledger: &Ledger, ask: &Ask| {
            let stays = *stays.entry(ask.device).or_insert_with(|| ledger.stays(ask.device));
            ledger.may_have(ask.client, ask.device, stays)
        };
        let mut answers = Vec::new();
        self.0.retain(|ask| {
            let made = match ledger.device(ask.device) {
                // What is not managed is limited by nobody.
                None => true,
                Some(device) if device.read_since(ask.since) || now.since(ask.since) > PATIENCE => {
                    ask.total <= limit(ledger, ask)
                }
                Some(_) => return true,
            };
            if made {
                // Up to the limit it need not ask again for a moment.
                let most = limit(ledger, ask).max(ask.total);
                ledger.promise(ask.client, ask.device, most);
            }
            let message = ToShim::Room { ticket: ask.ticket, made };
            answers.push(Command { client: ask.client, session: ask.session, message });
            false
        });
        (answers, !self.0.is_empty())
    }
}
