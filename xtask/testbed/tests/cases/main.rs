//! Programs that do something unusual, and right, with the driver: bare they run on the simulator, and so they must under
//! the library, with its memory moved away under them or beside an agent. Each test is one that once did not.
//!
//! [`programs`] compiles them; [`run`] runs them on a node of their own.

mod accounts;
mod answers;
mod arrays;
mod bypass;
mod costs;
mod descriptors;
mod ends;
mod hazards;
mod hooks;
mod looks;
mod order;
mod paging;
mod pressure;
mod programs;
mod room;
mod run;
mod sandbox;
mod service;
mod shares;
