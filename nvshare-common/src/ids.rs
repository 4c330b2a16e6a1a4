//! Who and which as types, so that a device, a client and a command cannot be confused.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One GPU, by the 16 bytes of its UUID (for a MIG slice: the slice's).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DeviceId(pub [u8; 16]);

impl fmt::Display for DeviceId {
    /// As NVML and `nvidia-smi` print it: `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GPU")?;
        for (index, byte) in self.0.iter().enumerate() {
            if matches!(index, 0 | 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for DeviceId {
    type Err = ParseDeviceIdError;
    fn from_str(text: &str) -> Result<DeviceId, ParseDeviceIdError> {
        let wrong = || ParseDeviceIdError(text.to_owned());
        let digits: String = text
            .trim_start_matches("GPU-")
            .trim_start_matches("MIG-")
            .chars()
            .filter(|c| *c != '-')
            .collect();
        if digits.len() != 32 || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * index..2 * index + 2], 16).map_err(|_| wrong())?;
        }
        Ok(DeviceId(id))
    }
}

/// A text that is not a GPU's UUID.
#[derive(Debug, thiserror::Error)]
#[error(
    "`{0}` is not a GPU's UUID: expected GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx as nvidia-smi -L prints it"
)]
pub struct ParseDeviceIdError(String);

/// The agent's number for a client, unique while the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

/// Names one command of the agent; the shim's answers to it carry the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ticket(pub u64);

/// Names an arena within one client's session and its successors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArenaId(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_id_reads_what_it_prints() {
        let id = DeviceId(*b"\x01\x23\x45\x67\x89\xab\xcd\xef\x10\x32\x54\x76\x98\xba\xdc\xfe");
        assert_eq!(id.to_string(), "GPU-01234567-89ab-cdef-1032-547698badcfe");
        assert_eq!(id.to_string().parse::<DeviceId>().unwrap(), id);
        assert!("GPU-0".parse::<DeviceId>().unwrap_err().to_string().contains("nvidia-smi -L"));
    }
}
