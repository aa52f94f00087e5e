//! The numbers and times that texts write.

/// So many digits fit a u64.
const DIGITS_MAX: usize = 19;
/// Every whole number up to here is a float, and so is every power of ten up to the 22nd: their quotient is rounded
/// once, as it must be (W. D. Clinger, "How to read floating point numbers accurately", 1990).
const EXACT_MAX: u64 = 1 << 53;
const POWERS: [f64; DIGITS_MAX + 1] =
    [1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19];

/// What a text of a device says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Said<'a> {
    Number(f64),
    /// It writes no number, or none that a float holds.
    Word(&'a [u8]),
    Nothing,
}

/// The number that JSON's grammar writes; None where another parser has to say.
#[inline]
pub fn json_number(written: &[u8]) -> Option<f64> {
    if written == b"-0" {
        return None; // an integer to some, and integers have one zero
    }
    plain(written).or_else(|| parsed(written))
}

/// The number that a text of a device writes, as `values.number_of_text` has it: digits with a point or a comma, an
/// exponent, and white space around.
#[inline]
pub fn said(text: &[u8]) -> Said<'_> {
    if text.is_empty() {
        return Said::Nothing;
    }
    if let Some(value) = plain(text) {
        return Said::Number(value);
    }
    let written = trimmed(text);
    if !is_number(written) {
        return Said::Word(text);
    }
    let pointed: Vec<u8> = written.iter().map(|&byte| if byte == b',' { b'.' } else { byte }).collect();
    parsed(&pointed).map_or(Said::Word(text), Said::Number)
}

/// A number of few digits without an exponent.
#[inline]
fn plain(written: &[u8]) -> Option<f64> {
    let unsigned = written.strip_prefix(b"-").unwrap_or(written);
    if unsigned.len() > DIGITS_MAX {
        return None;
    }
    let mut digits = 0u64;
    let mut count = 0;
    let mut point = None;
    for &byte in unsigned {
        match byte {
            b'0'..=b'9' => {
                digits = digits * 10 + u64::from(byte - b'0');
                count += 1;
            }
            b'.' | b',' if point.is_none() => point = Some(count),
            _ => return None,
        }
    }
    if count == 0 || digits > EXACT_MAX {
        return None;
    }
    let value = digits as f64 / POWERS[count - point.unwrap_or(count)];
    Some(if unsigned.len() < written.len() { -value } else { value })
}

/// The standard library's answer, for what is written with a point; None where no float holds it.
fn parsed(written: &[u8]) -> Option<f64> {
    let value: f64 = std::str::from_utf8(written).ok()?.parse().ok()?;
    value.is_finite().then_some(value)
}

/// Without the white space around: what Python's `\s` is in ASCII.
fn trimmed(text: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = text.iter().take_while(|byte| is_space(byte)).count();
    let end = text.iter().rev().take_while(|byte| is_space(byte)).count();
    text.get(start..text.len() - end).unwrap_or(b"")
}

/// `[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?`
fn is_number(text: &[u8]) -> bool {
    fn after_sign(text: &[u8]) -> &[u8] {
        match text {
            [b'+' | b'-', rest @ ..] => rest,
            _ => text,
        }
    }
    fn after_digits(text: &[u8]) -> (usize, &[u8]) {
        let count = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count, &text[count..])
    }
    let (whole, mut rest) = after_digits(after_sign(text));
    let mut fraction = 0;
    if let [b'.' | b',', after @ ..] = rest {
        (fraction, rest) = after_digits(after);
    }
    if let [b'e' | b'E', after @ ..] = rest {
        let (exponent, end) = after_digits(after_sign(after));
        return whole + fraction > 0 && exponent > 0 && end.is_empty();
    }
    whole + fraction > 0 && rest.is_empty()
}

/// When something was, in microseconds since 1970 as if in UTC where no offset is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time {
    pub us: i64,
    pub has_zone: bool,
}

/// `YYYY-MM-DDThh:mm:ss[.fraction][Z|+hh:mm|+hhmm|+hh]` (RFC 3339, ISO 8601); None where it is not written so, or no
/// time.
#[inline]
pub fn time(text: &[u8]) -> Option<Time> {
    let (head, mut rest) = (text.get(..19)?, &text[19..]);
    let two = |at: usize| digits_of(&head[at..at + 2]);
    let (year, month, day) = (digits_of(&head[..4])?, two(5)?, two(8)?);
    let (hour, minute, second) = (two(11)?, two(14)?, two(17)?);
    let separated = head[4] == b'-' && head[7] == b'-' && head[13] == b':' && head[16] == b':';
    if !separated || !matches!(head[10], b'T' | b't' | b' ') || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let mut us = days_since_1970(year, month, day)? * 86_400 + hour * 3_600 + minute * 60 + second;
    us *= 1_000_000;
    if let Some(fraction) = rest.strip_prefix(b".") {
        let length = fraction.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if !(1..=9).contains(&length) {
            return None;
        }
        let kept = length.min(6);
        us += digits_of(&fraction[..kept])? * 10_i64.pow(6 - kept as u32);
        rest = &fraction[length..];
    }
    let offset = offset_minutes(rest)?;
    Some(Time { us: us - offset.unwrap_or(0) * 60_000_000, has_zone: offset.is_some() })
}

/// Some(None) where there is no offset.
#[inline]
fn offset_minutes(text: &[u8]) -> Option<Option<i64>> {
    let (sign, digits) = match text {
        [] => return Some(None),
        [b'Z' | b'z'] => return Some(Some(0)),
        [b'+', digits @ ..] => (1, digits),
        [b'-', digits @ ..] => (-1, digits),
        _ => return None,
    };
    let (hours, minutes) = match digits {
        [_, _] => (digits_of(digits)?, 0),
        [_, _, b':', _, _] => (digits_of(&digits[..2])?, digits_of(&digits[3..])?),
        [_, _, _, _] => (digits_of(&digits[..2])?, digits_of(&digits[2..])?),
        _ => return None,
    };
    (hours <= 23 && minutes <= 59).then_some(Some(sign * (hours * 60 + minutes)))
}

#[inline]
fn digits_of(text: &[u8]) -> Option<i64> {
    let mut number = 0;
    for &byte in text {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number * 10 + i64::from(byte - b'0');
    }
    Some(number)
}

/// Days from 1970-01-01 in the Gregorian calendar; None where there is no such day from the year 1 on.
///
/// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", days_from_civil; years begin in March there.
#[inline]
fn days_since_1970(year: i64, month: i64, day: i64) -> Option<i64> {
    const DAYS: [i64; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = *DAYS.get(usize::try_from(month - 1).ok()?)?;
    if year < 1 || day < 1 || day > longest || (month == 2 && day == 29 && !is_leap) {
        return None;
    }
    let year = year - i64::from(month <= 2);
    let era = year / 400;
    let year_of_era = year - era * 400;
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}
