//! Arrays that were made to be moved and got no memory: there was none, or the driver had better make them itself. To end one waits
//! for the work of its context, which nobody who makes one waits for (an H200, both). So it is kept, with nothing behind it, until
//! the next of its form is wanted, or its context ends.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::device::tiles::Form;
use crate::memory::arrays::Name;

/// While there are more, arrays that may have to be kept are not made.
const MOST: usize = 256;

/// What an application asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    /// In which context.
    pub(super) context: usize,
    /// Of which form.
    pub(super) form: Form,
    /// With how many levels, if it is a mipmapped one.
    pub(super) levels: Option<u32>,
}

struct Spare {
    asked: Asked,
    name: Name,
    is_drivers: bool,
}

/// What is known of those that were made before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    Nothing,
    /// One is there.
    Made(Name),
    /// The driver makes it.
    Drivers,
}

static SPARES: Mutex<Vec<Spare>> = Mutex::new(Vec::new());

fn spares() -> MutexGuard<'static, Vec<Spare>> {
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What there is for what is asked. `may_stay`: the driver may have to make it in the end.
pub(super) fn find(asked: &Asked, may_stay: bool) -> Known {
    let mut spares = spares();
    match spares.iter().position(|spare| spare.asked == *asked) {
        Some(at) if spares[at].is_drivers => Known::Drivers,
        Some(at) => Known::Made(spares.swap_remove(at).name),
        None if may_stay && spares.len() >= MOST => Known::Drivers,
        None => Known::Nothing,
    }
}

/// Keeps one. `is_drivers`: the driver makes those of its form.
pub(super) fn keep(asked: Asked, name: Name, is_drivers: bool) {
    spares().push(Spare { asked, name, is_drivers });
}

/// They went with their context.
pub(super) fn context_ended(context: usize) {
    spares().retain(|spare| spare.asked.context != context);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_taken_once_or_says_that_the_driver_makes_it_until_its_context_ends() {
        let asked =
            |context, channels| Asked { context, form: Form { channels, ..Form::default() }, levels: None };
        keep(asked(1, 1), Name::Array(5), false);
        keep(asked(1, 2), Name::Array(6), true);
        assert_eq!(find(&asked(2, 1), true), Known::Nothing);
        assert_eq!(find(&asked(1, 1), true), Known::Made(Name::Array(5)));
        assert_eq!(find(&asked(1, 1), true), Known::Nothing);
        assert_eq!([find(&asked(1, 2), true), find(&asked(1, 2), false)], [Known::Drivers; 2]);
        for number in 0..MOST as u32 {
            keep(asked(3, number), Name::Array(7), true);
        }
        assert_eq!([find(&asked(2, 1), true), find(&asked(2, 1), false)], [Known::Drivers, Known::Nothing]);
        context_ended(1);
        context_ended(3);
        assert_eq!(find(&asked(1, 2), true), Known::Nothing);
    }
}
