//! A change of a setting as an administrator gives it, on the command line or on the socket. To the core the log's filter is
//! text; here it is read, so that nothing senseless comes in.

use nvshare_agent_core::change::Change;
use serde::{Deserialize, Deserializer};

use crate::log;

/// A change, if all of it makes sense.
pub fn read(text: &str) -> Result<Change, String> {
    let change = text.parse()?;
    if let Change::Log(filter) = &change {
        log::filter(filter).map_err(|expected| format!("`{filter}` is no value for log: {expected}"))?;
    }
    Ok(change)
}

/// Changes in a request.
pub(super) fn all<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Change>, D::Error> {
    let texts: Vec<String> = Vec::deserialize(from)?;
    texts.iter().map(|text| read(text)).collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::Request;

    #[test]
    fn a_filter_that_makes_no_sense_comes_in_neither_way() {
        let error = read("log=info,==").unwrap_err();
        assert!(error.contains("error, warn, info") && error.contains("info,=="), "{error}");
        let request = r#"{"request":"set","changes":["lease-floor=200ms","log=info,=="]}"#;
        let error = serde_json::from_str::<Request>(request).unwrap_err().to_string();
        assert!(error.contains("error, warn, info"), "{error}");
        assert_eq!(
            read("log=info,nvshare_agent::pods=debug").unwrap().to_string(),
            "log=info,nvshare_agent::pods=debug"
        );
    }
}
