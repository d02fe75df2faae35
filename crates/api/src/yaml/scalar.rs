//! What a plain scalar means.
//!
//! Kubernetes reads YAML 1.1 (`on`, `yes` and `0644` are not text), so the same file must mean the same here: a label
//! written `off` without quotes is a boolean, and is refused for that, in both places. Two of its surprises are left out:
//! `y` and `n` are text (a name can be `n`), and so is a number that starts with `0` but isn't octal (`08080`).

use super::Value;

/// The value of an unquoted scalar; nothing if it is the text as written.
pub(crate) fn resolve(plain: &str) -> Option<Value> {
    match plain {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" | "on" | "On" | "ON" | "yes" | "Yes" | "YES" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" | "off" | "Off" | "OFF" | "no" | "No" | "NO" => {
            return Some(Value::Bool(false));
        }
        _ => {}
    }
    let numeric = plain.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.'));
    if !numeric || plain.ends_with('_') {
        return None;
    }
    let digits = plain.replace('_', "");
    integer(&digits).map(Value::Int).or_else(|| float(&digits).map(Value::Float))
}

fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some(two) if two.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    let magnitude = i128::from_str_radix(digits, radix).ok().filter(|_| !digits.starts_with(['+', '-']))?;
    i64::try_from(if negative { -magnitude } else { magnitude }).ok()
}

/// Only decimal forms: `inf` and `nan` have no place in a manifest and stay text.
fn float(text: &str) -> Option<f64> {
    let unsigned = text.trim_start_matches(['+', '-']);
    if unsigned.len() > 1 && unsigned.starts_with('0') && unsigned.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let decimal = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'e' | b'E'));
    if decimal { text.parse().ok().filter(|value: &f64| value.is_finite()) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_scalars_mean_what_kubernetes_reads() {
        let text = |text: &str| Value::Text(text.to_owned());
        for (plain, value) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("off", Value::Bool(false)),
            ("true", Value::Bool(true)),
            ("5000", Value::Int(5000)),
            ("-1", Value::Int(-1)),
            ("0", Value::Int(0)),
            ("0644", Value::Int(420)),
            ("0o644", Value::Int(420)),
            ("0x1F", Value::Int(31)),
            ("1_000", Value::Int(1000)),
            ("9223372036854775808", Value::Float(9_223_372_036_854_775_808.0)),
            ("1.5", Value::Float(1.5)),
            ("1e3", Value::Float(1000.0)),
            ("0.5", Value::Float(0.5)),
            ("089", text("089")),
            ("-08080", text("-08080")),
            ("n", text("n")),
            ("Y", text("Y")),
            ("1.2.3", text("1.2.3")),
            ("10.0.0.0/8", text("10.0.0.0/8")),
            ("1Gi", text("1Gi")),
            ("-", text("-")),
            ("--5", text("--5")),
            ("+-5", text("+-5")),
            ("0x", text("0x")),
            ("0x-1", text("0x-1")),
            (".inf", text(".inf")),
            ("Off.", text("Off.")),
            ("mlflow", text("mlflow")),
        ] {
            assert_eq!(resolve(plain).unwrap_or_else(|| text(plain)), value, "{plain}");
        }
    }
}
