//! Readers. What stands in the ledger is written by the ledger alone, and read by anybody: a field that others may know
//! has a reader of the same name, with the words that say what it is.

/// A reader for each of these fields, or fields `in` a part: it gives a copy, or lends it where the type begins with `&`.
macro_rules! readers {
    () => {};
    ($(#[$what:meta])* $field:ident $(in $part:ident)?: &$Type:ty, $($more:tt)*) => {
        $(#[$what])*
        pub fn $field(&self) -> &$Type {
            &self.$($part.)?$field
        }
        readers! { $($more)* }
    };
    ($(#[$what:meta])* $field:ident $(in $part:ident)?: Option<&str>, $($more:tt)*) => {
        $(#[$what])*
        pub fn $field(&self) -> Option<&str> {
            self.$($part.)?$field.as_deref()
        }
        readers! { $($more)* }
    };
    ($(#[$what:meta])* $field:ident $(in $part:ident)?: $Type:ty, $($more:tt)*) => {
        $(#[$what])*
        pub fn $field(&self) -> $Type {
            self.$($part.)?$field
        }
        readers! { $($more)* }
    };
}

pub(super) use readers;
