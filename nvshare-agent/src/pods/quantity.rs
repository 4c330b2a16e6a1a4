//! Amounts as Kubernetes writes them: `8Gi`, `8G`, `8589934592`, `1.5e9`, `8589934592000m`.
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>

use nvshare_common::bytes::Bytes;

/// Reads an amount of bytes; a part of a byte counts as one, as it does in Kubernetes.
pub fn bytes(text: &str) -> Result<Bytes, String> {
    let wrong = || format!("`{text}` is no quantity: expected bytes such as 8Gi, 8G or 8589934592");
    let number = text.strip_prefix('+').unwrap_or(text);
    let end = number.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(number.len());
    let (number, suffix) = number.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(wrong());
    }
    let (binary, decimal) = scale(suffix).ok_or_else(wrong)?;
    let large =
        || format!("`{text}` is more than there can be: expected bytes such as 8Gi, 8G or 8589934592");
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| large())?;
    let decimal = decimal - i32::try_from(fraction.len()).map_err(|_| large())?;
    let power = |exponent: i32| 10_u128.checked_pow(exponent.unsigned_abs());
    let scaled = digits.checked_mul(1 << binary).ok_or_else(large)?;
    let amount = if digits == 0 {
        Some(0)
    } else if decimal >= 0 {
        power(decimal).and_then(|power| scaled.checked_mul(power))
    } else {
        // Less than a byte, however much less, is a byte.
        Some(power(decimal).map_or(1, |power| scaled.div_ceil(power)))
    };
    amount.and_then(|amount| u64::try_from(amount).ok()).map(Bytes).ok_or_else(large)
}

/// The power of two and the power of ten that a suffix stands for.
fn scale(suffix: &str) -> Option<(u32, i32)> {
    Some(match suffix {
        "" => (0, 0),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        exponent => (0, exponent.strip_prefix(['e', 'E'])?.parse().ok().filter(|e: &i32| e.abs() < 100)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("8589934592", 8 << 30),
            ("8Gi", 8 << 30),
            ("8G", 8_000_000_000),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("5.", 5),
            ("+2k", 2000),
            ("8e9", 8_000_000_000),
            ("8E3", 8000),
            ("1E", 1_000_000_000_000_000_000),
            ("2Ei", 2 << 60),
            ("8589934592000m", 8 << 30),
            ("1500m", 2),
            ("1n", 1),
            ("1e-90", 1),
            ("0", 0),
            ("0.0Gi", 0),
        ] {
            assert_eq!(bytes(text), Ok(Bytes(expected)), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_is_refused_with_examples_of_one() {
        for text in [
            "",
            "Gi",
            ".",
            "8GiB",
            "8GB",
            "8 Gi",
            "8g",
            "8K",
            "-8Gi",
            "1.2.3",
            "lots",
            "NaN",
            "0x10",
            "8e",
            "8e1.5",
            "20Ei",
            "1e99",
            "99999999999999999999",
            "9e999999999",
        ] {
            let why = bytes(text).unwrap_err();
            assert!(why.contains("8Gi, 8G or 8589934592") && why.contains(text), "{text}: {why}");
        }
    }
}
