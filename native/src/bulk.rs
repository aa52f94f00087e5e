//! The Easy Smart Monitor bulk form, as clients usually write it: objects of scalars that end with `"sensor": [...]}`.
//!
//! What is read here means what `esm_fields.py` says it means. Of two fields of one name the last counts.

use std::collections::HashMap;

use crate::cursor::{Cursor, Read, Scalar, Stop};
use crate::values::{json_number, said, time, Said, Time};

/// The index of what is not said.
pub const NONE: i32 = -1;

/// The bytes from the first to before the second.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

/// An equipment object.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Object {
    pub all: Span,
    /// Where its list of readings begins, after the bracket.
    pub list: u32,
    pub readings: u32,
}

/// Columns with room for `len` readings each.
pub struct Columns<'a> {
    pub spans: &'a mut [Span],
    /// Indexes of `Found::sensors`, or NONE.
    pub sensors: &'a mut [i32],
    pub times_us: &'a mut [i64],
    /// One of TIME_MISSING, TIME_NAIVE, TIME_ZONED.
    pub time_kinds: &'a mut [u8],
    /// NaN where there is none, here and below.
    pub values: &'a mut [f64],
    /// Indexes of `Found::statuses`, or NONE.
    pub statuses: &'a mut [i32],
    pub battery: &'a mut [f64],
    pub rssi: &'a mut [f64],
    pub lqi: &'a mut [f64],
    pub battery_voltage: &'a mut [f64],
}

pub const TIME_MISSING: u8 = 0;
pub const TIME_NAIVE: u8 = 1;
pub const TIME_ZONED: u8 = 2;

/// What was found, and the columns' lengths.
#[derive(Default)]
pub struct Found {
    pub objects: Vec<Object>,
    pub readings: usize,
    /// The texts that name sensors, each once, and those that are statuses.
    pub sensors: Vec<Span>,
    pub statuses: Vec<Span>,
    /// Whether a reading says anything of its sensor.
    pub describes: bool,
    /// Whether a reading says anything of battery, RSSI, LQI or battery voltage.
    pub metadata: bool,
    /// Why reading ended before the text or the columns did, if it did.
    pub stop: Option<Stop>,
}

/// Read the objects from `start` on, as long as they are usual, whole and no longer than `object_bytes_max`, and the
/// columns have room, and no more than `objects_max`. There are no more sensors or statuses than readings.
pub fn read(text: &[u8], start: usize, object_bytes_max: usize, objects_max: usize, columns: Columns) -> Found {
    let mut reader = Reader {
        cursor: Cursor { text, at: start },
        columns,
        found: Found::default(),
        sensors: Names::default(),
        statuses: Names::default(),
        order: Vec::new(),
    };
    while reader.found.objects.len() < objects_max {
        let names = (reader.sensors.texts.len(), reader.statuses.texts.len());
        match reader.object(object_bytes_max) {
            Ok(object) => {
                reader.found.readings += object.readings as usize;
                reader.found.objects.push(object);
            }
            Err(stop) => {
                reader.found.stop = Some(stop);
                reader.sensors.texts.truncate(names.0);
                reader.statuses.texts.truncate(names.1);
                break;
            }
        }
        if reader.next_object().is_err() {
            break;
        }
    }
    Found { sensors: reader.sensors.spans(text), statuses: reader.statuses.spans(text), ..reader.found }
}

/// Texts by number, in the order found.
#[derive(Default)]
struct Names<'a> {
    numbers: HashMap<&'a [u8], i32>,
    texts: Vec<&'a [u8]>,
    /// The one that followed each the last time: mostly it does so again, which is quicker to see than to look up.
    following: Vec<i32>,
    last: usize,
}

impl<'a> Names<'a> {
    #[inline]
    fn number(&mut self, text: &'a [u8]) -> i32 {
        let guess = self.following.get(self.last).copied().unwrap_or(NONE);
        if guess != NONE && self.texts[guess as usize] == text {
            self.last = guess as usize;
            return guess;
        }
        let next = self.texts.len() as i32;
        let number = *self.numbers.entry(text).or_insert(next);
        if number == next {
            self.texts.push(text);
            self.following.push(NONE);
        }
        self.following[self.last] = number;
        self.last = number as usize;
        number
    }

    /// Where each stands in `whole`, of which all are parts.
    fn spans(&self, whole: &[u8]) -> Vec<Span> {
        let span = |text: &&[u8]| {
            let start = (text.as_ptr() as usize - whole.as_ptr() as usize) as u32;
            Span { start, end: start + text.len() as u32 }
        };
        self.texts.iter().map(span).collect()
    }
}

/// A field of a reading.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Sensor,
    Number,
    Telemetry,
    Status,
    SensorStatus,
    Collected,
    Timestamp,
    Battery,
    Rssi,
    Lqi,
    BatteryVoltage,
    Description,
    Unknown,
}

impl Field {
    fn of(key: &[u8]) -> Field {
        match key {
            b"sensor_uuid" => Field::Sensor,
            b"valor" => Field::Number,
            b"sensor_telemetria" => Field::Telemetry,
            b"status" => Field::Status,
            b"sensor_status" => Field::SensorStatus,
            b"sensor_datahora_coleta" => Field::Collected,
            b"timestamp" => Field::Timestamp,
            b"sensor_bateria_pct" => Field::Battery,
            b"sensor_sinal_rssi" => Field::Rssi,
            b"sensor_sinal_lqi" => Field::Lqi,
            b"sensor_voltagem_bateria" => Field::BatteryVoltage,
            b"sensor_nome"
            | b"sensor_tipo"
            | b"sensor_unidade"
            | b"sensor_fabricante"
            | b"sensor_modelo"
            | b"sensor_firmware"
            | b"sensor_id_hardware"
            | b"sensor_via_hub" => Field::Description,
            _ => Field::Unknown,
        }
    }
}

/// What one reading says.
struct Reading<'a> {
    sensor: Option<&'a [u8]>,
    number: Option<f64>,
    telemetry: Said<'a>,
    status: Option<&'a [u8]>,
    sensor_status: Option<&'a [u8]>,
    collected: Option<Time>,
    timestamp: Option<Time>,
    battery: f64,
    rssi: f64,
    lqi: f64,
    battery_voltage: f64,
}

struct Reader<'a, 'c> {
    cursor: Cursor<'a>,
    columns: Columns<'c>,
    found: Found,
    sensors: Names<'a>,
    statuses: Names<'a>,
    /// What stood from before each key to before its value the last time, and the field: mostly it stands there again.
    order: Vec<(&'a [u8], Field)>,
}

impl<'a> Reader<'a, '_> {
    /// Go to where the next object begins; an error where there is none.
    fn next_object(&mut self) -> Read<()> {
        self.cursor.expect(b',')?;
        self.cursor.peek().map(drop)
    }

    fn object(&mut self, bytes_max: usize) -> Read<Object> {
        let start = self.cursor.at;
        self.cursor.expect(b'{')?;
        while self.cursor.text()? != b"sensor" {
            self.cursor.expect(b':')?;
            self.cursor.scalar()?;
            self.cursor.expect(b',')?;
            self.cursor.peek()?;
        }
        self.cursor.expect(b':')?;
        self.cursor.expect(b'[')?;
        let list = self.cursor.at;
        let readings = self.list(start + bytes_max)?;
        self.cursor.expect(b'}')?;
        let end = self.cursor.at;
        if end - start > bytes_max {
            return Err(Stop::Unusual);
        }
        let all = Span { start: start as u32, end: end as u32 };
        Ok(Object { all, list: list as u32, readings: readings as u32 })
    }

    fn list(&mut self, end_max: usize) -> Read<usize> {
        let mut count = 0;
        if self.cursor.peek()? == b']' {
            self.cursor.at += 1;
            return Ok(count);
        }
        loop {
            let row = self.found.readings + count;
            if self.cursor.peek()? != b'{' || self.cursor.at > end_max {
                return Err(Stop::Unusual);
            }
            if row == self.columns.values.len() {
                return Err(Stop::Full);
            }
            let start = self.cursor.at;
            self.cursor.at += 1;
            let reading = self.reading()?;
            self.columns.spans[row] = Span { start: start as u32, end: self.cursor.at as u32 };
            self.put(row, &reading);
            count += 1;
            let next = self.cursor.peek()?;
            self.cursor.at += 1;
            match next {
                b',' => continue,
                b']' => return Ok(count),
                _ => return Err(Stop::Unusual),
            }
        }
    }

    /// The fields up to the closing brace.
    fn reading(&mut self) -> Read<Reading<'a>> {
        let mut reading = Reading {
            sensor: None,
            number: None,
            telemetry: Said::Nothing,
            status: None,
            sensor_status: None,
            collected: None,
            timestamp: None,
            battery: f64::NAN,
            rssi: f64::NAN,
            lqi: f64::NAN,
            battery_voltage: f64::NAN,
        };
        let mut place = 0;
        loop {
            let field = self.field(place)?;
            place += 1;
            let value = self.cursor.scalar()?;
            self.note(&mut reading, field, value).ok_or(Stop::Unusual)?;
            match self.cursor.peek()? {
                b',' => continue,
                b'}' => {
                    self.cursor.at += 1;
                    return Ok(reading);
                }
                _ => return Err(Stop::Unusual),
            }
        }
    }

    /// Step over the comma, if it is not the first field, the key and the colon.
    #[inline]
    fn field(&mut self, place: usize) -> Read<Field> {
        if let Some(&(written, field)) = self.order.get(place) {
            if self.cursor.take(written) {
                return Ok(field);
            }
        }
        let start = self.cursor.at;
        if place > 0 {
            self.cursor.expect(b',')?;
        }
        let field = Field::of(self.cursor.text()?);
        self.cursor.expect(b':')?;
        self.order.truncate(place);
        self.order.push((&self.cursor.text[start..self.cursor.at], field));
        Ok(field)
    }

    /// None where another parser has to say what the value means.
    #[inline]
    fn note(&mut self, reading: &mut Reading<'a>, field: Field, value: Scalar<'a>) -> Option<()> {
        match field {
            Field::Sensor => reading.sensor = text_of(value)?,
            Field::Number => {
                reading.number = match value {
                    Scalar::Null => None,
                    Scalar::Number(written) => Some(json_number(written)?),
                    _ => return None,
                }
            }
            Field::Telemetry => reading.telemetry = said_of(value)?,
            Field::Status => reading.status = text_of(value)?,
            Field::SensorStatus => reading.sensor_status = text_of(value)?,
            Field::Collected => reading.collected = time_of(value)?,
            Field::Timestamp => reading.timestamp = time_of(value)?,
            Field::Battery => reading.battery = self.metadata_of(value)?,
            Field::Rssi => reading.rssi = self.metadata_of(value)?,
            Field::Lqi => reading.lqi = self.metadata_of(value)?,
            Field::BatteryVoltage => reading.battery_voltage = self.metadata_of(value)?,
            Field::Description => self.found.describes = true,
            Field::Unknown => {}
        }
        Some(())
    }

    #[inline]
    fn metadata_of(&mut self, value: Scalar<'a>) -> Option<f64> {
        let number = number_of(said_of(value)?);
        self.found.metadata |= !number.is_nan();
        Some(number)
    }

    #[inline]
    fn put(&mut self, row: usize, reading: &Reading<'a>) {
        let value = reading.number.unwrap_or(number_of(reading.telemetry));
        let word = match reading.telemetry {
            Said::Word(text) if value.is_nan() => Some(text), // it is a status only where nothing is measured
            _ => None,
        };
        let status = reading.status.or(word).or(reading.sensor_status);
        let when = reading.collected.or(reading.timestamp);
        let columns = &mut self.columns;
        columns.sensors[row] = reading.sensor.map_or(NONE, |name| self.sensors.number(name));
        columns.statuses[row] = status.map_or(NONE, |name| self.statuses.number(name));
        columns.values[row] = value;
        columns.times_us[row] = when.map_or(0, |time| time.us);
        columns.time_kinds[row] = match when {
            None => TIME_MISSING,
            Some(Time { has_zone: false, .. }) => TIME_NAIVE,
            Some(Time { has_zone: true, .. }) => TIME_ZONED,
        };
        columns.battery[row] = reading.battery;
        columns.rssi[row] = reading.rssi;
        columns.lqi[row] = reading.lqi;
        columns.battery_voltage[row] = reading.battery_voltage;
    }
}

/// A text, Some(None) for null and for the empty one.
#[inline]
fn text_of(value: Scalar<'_>) -> Option<Option<&[u8]>> {
    match value {
        Scalar::Null | Scalar::Text(b"") => Some(None),
        Scalar::Text(text) => Some(Some(text)),
        _ => None,
    }
}

#[inline]
fn time_of(value: Scalar<'_>) -> Option<Option<Time>> {
    match value {
        Scalar::Null => Some(None),
        Scalar::Text(text) => time(text).map(Some),
        _ => None,
    }
}

#[inline]
fn said_of(value: Scalar<'_>) -> Option<Said<'_>> {
    match value {
        Scalar::Null => Some(Said::Nothing),
        Scalar::Number(written) => json_number(written).map(Said::Number),
        Scalar::Text(text) => Some(said(text)),
        Scalar::Bool | Scalar::Escaped => None,
    }
}

/// NaN where it is none.
#[inline]
fn number_of(said: Said) -> f64 {
    match said {
        Said::Number(value) => value,
        _ => f64::NAN,
    }
}
