//! Why there is no more host memory for shadows, for people. The text stays as it is for as long as its cause does: each new
//! text is a line in the log, and how much is missing changes with every look; that figure is published beside it.

use std::mem::{Discriminant, discriminant};

use nvshare_common::bytes::Bytes;

use crate::arena::HostError;

/// The cause and its text, if there is one.
#[derive(Debug, Default)]
pub struct Shortage(Option<(Cause, String)>);

#[derive(Debug, PartialEq)]
enum Cause {
    Budget,
    Node(Discriminant<HostError>),
}

impl Shortage {
    /// All of `budget` is handed out.
    pub fn budget(&mut self, budget: Bytes) {
        let why = format!(
            "host memory for shadows is missing: --host-memory ({budget}) is used up; raise it, or run less"
        );
        self.0 = Some((Cause::Budget, why));
    }

    /// An arena could not be made. Says whether that is news.
    pub fn node(&mut self, why: &HostError) -> bool {
        let cause = Cause::Node(discriminant(why));
        let news = self.0.as_ref().is_none_or(|(known, _)| *known != cause);
        if news {
            self.0 = Some((cause, why.to_string()));
        }
        news
    }

    /// Everybody has what he may need.
    pub fn over(&mut self) {
        self.0 = None;
    }

    /// The text.
    pub fn why(&self) -> Option<String> {
        self.0.as_ref().map(|(_, why)| why.clone())
    }
}
