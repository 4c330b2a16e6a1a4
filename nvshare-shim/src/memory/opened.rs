//! What this process has opened of other processes' memory: by ticket, so that who opens one again finds it at the same address
//! and closes it as often, and by address. Pure.

use std::collections::BTreeMap;

use nvshare_common::share::Ticket;

/// Memory of another process, mapped here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened<L> {
    /// Where the allocation begins here, and how long it is.
    pub start: u64,
    /// What its owner asked for.
    pub bytes: u64,
    /// The reservation, and how long that is.
    pub span: u64,
    /// See [`Opened::span`].
    pub whole: u64,
    /// The lengths of its pieces, each mapped by itself.
    pub pieces: Vec<u64>,
    /// The context whose end is its end.
    pub context: usize,
    /// The card, as the driver numbers it.
    pub device: i32,
    /// A number that no other allocation has, or had.
    pub number: u64,
    /// Who is told when it is open no longer.
    pub lender: L,
}

/// What comes of a wish to open something.
#[derive(Debug, PartialEq, Eq)]
pub enum Wish {
    /// It is open, at this address, and once more.
    Again(u64),
    /// Another thread opens or closes it just now.
    Wait,
    /// Whoever asked opens it, and says what came of it.
    First,
}

/// All that is open.
#[derive(Debug)]
pub struct Table<L> {
    /// By address: with its ticket, and how many times it is open.
    open: BTreeMap<u64, (Ticket, Opened<L>, u64)>,
    /// What is being opened, or closed.
    busy: Vec<Ticket>,
}

impl<L> Table<L> {
    /// Nothing is open.
    #[expect(clippy::new_without_default, reason = "it is made where only constants are")]
    pub const fn new() -> Table<L> {
        Table { open: BTreeMap::new(), busy: Vec::new() }
    }

    /// Somebody wants to open what `ticket` names.
    pub fn wish(&mut self, ticket: Ticket) -> Wish {
        if self.busy.contains(&ticket) {
            return Wish::Wait;
        }
        let open = self.open.values_mut().find(|(known, ..)| *known == ticket);
        if let Some((_, opened, times)) = open {
            *times += 1;
            return Wish::Again(opened.start);
        }
        self.busy.push(ticket);
        Wish::First
    }

    /// What came of it: nothing, or this is open once.
    pub fn settle(&mut self, ticket: Ticket, opened: Option<Opened<L>>) {
        self.busy.retain(|busy| *busy != ticket);
        if let Some(opened) = opened {
            self.open.insert(opened.start, (ticket, opened, 1));
        }
    }

    /// Closes what begins at `start` once. `None`: nothing does. With what is to be unmapped, after the last time: until that is
    /// settled nobody else opens it.
    pub fn close(&mut self, start: u64) -> Option<Option<(Ticket, Opened<L>)>> {
        let (_, _, times) = self.open.get_mut(&start)?;
        if *times > 1 {
            *times -= 1;
            return Some(None);
        }
        let (ticket, opened, _) = self.open.remove(&start)?;
        self.busy.push(ticket);
        Some(Some((ticket, opened)))
    }

    /// Takes out what belongs to a context.
    pub fn end_of(&mut self, context: usize) -> Vec<Opened<L>> {
        let gone = self.open.extract_if(.., |_, (_, opened, _)| opened.context == context);
        gone.map(|(_, (_, opened, _))| opened).collect()
    }

    /// What `at` lies in.
    pub fn find(&self, at: u64) -> Option<&Opened<L>> {
        let (start, (_, opened, _)) = self.open.range(..=at).next_back()?;
        (at - start < opened.bytes).then_some(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket { place: [1; 16], number: 7, secret: [2; 16] };

    fn opened(start: u64, context: usize) -> Opened<()> {
        let (bytes, span, pieces) = (100, start & !0xff, vec![256]);
        Opened { start, bytes, span, whole: 256, pieces, context, device: 0, number: 1, lender: () }
    }

    #[test]
    fn what_is_opened_again_is_the_same_and_closed_as_often() {
        let mut table = Table::new();
        assert_eq!(table.wish(TICKET), Wish::First);
        assert_eq!(table.wish(TICKET), Wish::Wait);
        table.settle(TICKET, Some(opened(0x1010, 5)));
        assert_eq!(table.wish(TICKET), Wish::Again(0x1010));
        assert_eq!(table.find(0x1073), Some(&opened(0x1010, 5)));
        assert_eq!((table.find(0x1074), table.find(0x100f)), (None, None));
        assert_eq!(table.close(0x1011), None, "not where it begins");
        assert_eq!(table.close(0x1010), Some(None));
        assert_eq!(table.close(0x1010), Some(Some((TICKET, opened(0x1010, 5)))));
        assert_eq!(table.close(0x1010), None);
        assert_eq!(table.wish(TICKET), Wish::Wait, "its end is under way");
        table.settle(TICKET, None);
        assert_eq!(table.wish(TICKET), Wish::First);
    }

    #[test]
    fn a_context_takes_what_was_opened_in_it() {
        let mut table = Table::new();
        let other = Ticket { number: 8, ..TICKET };
        for (ticket, start, context) in [(TICKET, 0x1000, 5), (other, 0x2000, 6)] {
            assert_eq!(table.wish(ticket), Wish::First);
            table.settle(ticket, Some(opened(start, context)));
        }
        assert_eq!(table.end_of(5), [opened(0x1000, 5)]);
        assert_eq!(table.end_of(5), []);
        assert!(table.find(0x1000).is_none() && table.find(0x2000).is_some());
    }
}
