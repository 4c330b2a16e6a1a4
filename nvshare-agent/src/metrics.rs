//! Every exported series, in one place.
