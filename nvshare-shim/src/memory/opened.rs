//! What this process has opened of other processes' memory: by ticket, so that who opens one again finds it at the same address
//! and closes it as often, and by address. Pure.

use nvshare_common::share::Ticket;

/// Memory of another process, mapped here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Where the allocation begins here, and how long it is.
    pub start: u64,
    /// What its owner asked for.
    pub bytes: u64,
    /// The reservation.
    pub span: u64,
    /// The lengths of its pieces, each mapped by itself.
    pub pieces: Vec<u64>,
    /// The context whose end is its end.
    pub context: usize,
    /// The card, as the driver numbers it.
    pub device: i32,
    /// A number that no other allocation has, or had.
    pub number: u64,
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

/// One ticket.
#[derive(Debug)]
enum Place {
    /// It is being opened, or closed.
    Busy,
    /// It is open, so many times.
    Open(Opened, u64),
}

/// All that is open.
#[derive(Debug, Default)]
pub struct Table(Vec<(Ticket, Place)>);

impl Table {
    /// Nothing is open.
    pub const fn new() -> Table {
        Table(Vec::new())
    }

    /// Somebody wants to open what `ticket` names.
    pub fn wish(&mut self, ticket: Ticket) -> Wish {
        match self.0.iter_mut().find(|(known, _)| *known == ticket) {
            Some((_, Place::Open(opened, times))) => {
                *times += 1;
                Wish::Again(opened.start)
            }
            Some((_, Place::Busy)) => Wish::Wait,
            None => {
                self.0.push((ticket, Place::Busy));
                Wish::First
            }
        }
    }

    /// What came of it: nothing, or this is open once.
    pub fn settle(&mut self, ticket: Ticket, opened: Option<Opened>) {
        self.0.retain(|(known, _)| *known != ticket);
        if let Some(opened) = opened {
            self.0.push((ticket, Place::Open(opened, 1)));
        }
    }

    /// Closes what begins at `start` once. `None`: nothing does. With what is to be unmapped, after the last time: until that is
    /// settled nobody else opens it.
    pub fn close(&mut self, start: u64) -> Option<Option<(Ticket, Opened)>> {
        let is_it = |place: &Place| matches!(place, Place::Open(opened, _) if opened.start == start);
        let (ticket, place) = self.0.iter_mut().find(|(_, place)| is_it(place))?;
        if let Place::Open(_, times @ 2..) = place {
            *times -= 1;
            return Some(None);
        }
        match std::mem::replace(place, Place::Busy) {
            Place::Open(opened, _) => Some(Some((*ticket, opened))),
            Place::Busy => None,
        }
    }

    /// Takes out what belongs to a context.
    pub fn end_of(&mut self, context: usize) -> Vec<Opened> {
        let ends = |place: &Place| matches!(place, Place::Open(opened, _) if opened.context == context);
        let gone = self.0.extract_if(.., |(_, place)| ends(place));
        gone.filter_map(|(_, place)| match place {
            Place::Open(opened, _) => Some(opened),
            Place::Busy => None,
        })
        .collect()
    }

    /// What `at` lies in.
    pub fn find(&self, at: u64) -> Option<&Opened> {
        self.0.iter().find_map(|(_, place)| match place {
            Place::Open(opened, _)
                if at.checked_sub(opened.start).is_some_and(|into| into < opened.bytes) =>
            {
                Some(opened)
            }
            _ => None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKET: Ticket = Ticket { place: [1; 16], number: 7, secret: [2; 16] };

    fn opened(start: u64, context: usize) -> Opened {
        let (bytes, span, pieces) = (100, start & !0xff, vec![256]);
        Opened { start, bytes, span, pieces, context, device: 0, number: 1 }
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
