//! Instants and durations as text, in the spellings the Flyte console writes and reads.
//!
//! Out: RFC 3339 in UTC, with a fraction only where there is one; durations as `1h30m0s` (`time.Duration` of Go), which is
//! what the console's duration field parses. In: those, and what its widgets and people produce as well: instants with
//! any offset, without one (UTC, as the SDK and the console both read them), without seconds, or a bare date; durations
//! in ISO 8601 (`PT1H30M`) or as a number of seconds.

use buffa::json_helpers::wkt::{MAX_DURATION_SECS, fmt_timestamp, parse_timestamp};
use buffa_types::google::protobuf::{Duration, Timestamp};

const NANOS_PER_SEC: i128 = 1_000_000_000;

/// A unit's text and its length in nanoseconds.
type Unit = (&'static str, i128);

/// Longest text first where one is the prefix of another (`ms` before `m`). Both spellings of micro are in Unicode.
const GO_UNITS: [Unit; 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", NANOS_PER_SEC),
    ("m", 60 * NANOS_PER_SEC),
    ("h", 3_600 * NANOS_PER_SEC),
];
/// Years and months are left out: they have no fixed length.
const ISO_DATE_UNITS: [Unit; 2] = [("W", 604_800 * NANOS_PER_SEC), ("D", 86_400 * NANOS_PER_SEC)];
const ISO_TIME_UNITS: [Unit; 3] = [("H", 3_600 * NANOS_PER_SEC), ("M", 60 * NANOS_PER_SEC), ("S", NANOS_PER_SEC)];

pub(super) fn datetime_to_text(instant: &Timestamp) -> Option<String> {
    fmt_timestamp(instant.seconds, instant.nanos).ok()
}

pub(super) fn datetime_from_text(text: &str) -> Option<Timestamp> {
    let text = text.trim();
    // ASCII only from here on, so that byte offsets are character offsets.
    if !text.is_ascii() || text.len() < 10 {
        return None;
    }
    let (date, rest) = text.split_at(10);
    let canonical = match rest.as_bytes().first() {
        None => format!("{date}T00:00:00Z"),
        Some(b'T' | b't' | b' ') => {
            let rest = &rest[1..];
            let clock_end = rest.find(['Z', 'z', '+', '-']).unwrap_or(rest.len());
            let (clock, offset) = rest.split_at(clock_end);
            let seconds = if clock.len() == 5 { ":00" } else { "" };
            let offset = if offset.is_empty() { "Z" } else { offset };
            format!("{date}T{clock}{seconds}{}", offset.to_ascii_uppercase())
        }
        Some(_) => return None,
    };
    let (seconds, nanos) = parse_timestamp(&canonical).ok()?;
    Some(Timestamp { seconds, nanos, ..Default::default() })
}

/// None when the duration is outside the range protobuf allows, or its two parts disagree in sign.
pub(super) fn duration_to_text(duration: &Duration) -> Option<String> {
    let nanos = i128::from(duration.seconds) * NANOS_PER_SEC + i128::from(duration.nanos);
    duration_from_nanos(nanos).filter(|same| same.seconds == duration.seconds && same.nanos == duration.nanos)?;

    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.abs();
    // Below a second one small unit, from there on hours, minutes and seconds down from the first that is not zero.
    let body = match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(nanos, 1_000)),
        1_000_000..NANOS_PER_SEC => format!("{}ms", decimal(nanos, 1_000_000)),
        _ => {
            let minutes = nanos / (60 * NANOS_PER_SEC);
            let seconds = decimal(nanos % (60 * NANOS_PER_SEC), NANOS_PER_SEC);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    Some(format!("{sign}{body}"))
}

pub(super) fn duration_from_text(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (negative, text) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let nanos = if let Some(iso) = text.strip_prefix('P') {
        iso_nanos(iso)?
    } else if text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        scaled(text, NANOS_PER_SEC)?
    } else {
        unit_nanos(text, &GO_UNITS)?
    };
    duration_from_nanos(if negative { -nanos } else { nanos })
}

/// A JSON number is seconds. (The console's own milliseconds do not leave its form.)
pub(super) fn duration_from_seconds(seconds: f64) -> Option<Duration> {
    // Keeps the product far inside i128, and NaN out.
    let limit = MAX_DURATION_SECS as f64;
    (-limit..=limit)
        .contains(&seconds)
        .then(|| (seconds * NANOS_PER_SEC as f64).round() as i128)
        .and_then(duration_from_nanos)
}

fn duration_from_nanos(nanos: i128) -> Option<Duration> {
    let seconds = i64::try_from(nanos / NANOS_PER_SEC).ok()?;
    let nanos = i32::try_from(nanos % NANOS_PER_SEC).ok()?;
    let in_range = seconds.checked_abs().is_some_and(|seconds| seconds <= MAX_DURATION_SECS);
    in_range.then(|| Duration { seconds, nanos, ..Default::default() })
}

fn iso_nanos(text: &str) -> Option<i128> {
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let days = if date.is_empty() { None } else { Some(unit_nanos(date, &ISO_DATE_UNITS)?) };
    let clock = time.map(|time| unit_nanos(time, &ISO_TIME_UNITS)).map_or(Some(None), |nanos| nanos.map(Some))?;
    match (days, clock) {
        (None, None) => None,
        (days, clock) => days.unwrap_or(0).checked_add(clock.unwrap_or(0)),
    }
}

/// The sum of one or more `number unit` pairs.
fn unit_nanos(mut text: &str, units: &[Unit]) -> Option<i128> {
    if text.is_empty() {
        return None;
    }
    let mut total = 0_i128;
    while !text.is_empty() {
        let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, rest) = text.split_at(number_end);
        let (unit, nanos) = units.iter().find(|(unit, _)| rest.starts_with(unit))?;
        total = total.checked_add(scaled(number, *nanos)?)?;
        text = &rest[unit.len()..];
    }
    Some(total)
}

/// `number × scale` without going through a float; digits below a nanosecond are dropped.
fn scaled(number: &str, scale: i128) -> Option<i128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<i128>().ok()? };
    // 15 digits resolve a nanosecond of the longest unit, a week.
    let fraction = &fraction[..fraction.len().min(15)];
    let part = if fraction.is_empty() {
        0
    } else {
        fraction.parse::<i128>().ok()? * scale / 10_i128.pow(fraction.len() as u32)
    };
    whole.checked_mul(scale)?.checked_add(part)
}

/// `value / unit` in decimal without trailing zeros; `unit` is a power of ten.
fn decimal(value: i128, unit: i128) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    format!("{whole}.{}", format!("{fraction:0width$}").trim_end_matches('0'))
}
