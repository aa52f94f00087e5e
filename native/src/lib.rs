//! Reads the bulk form (SPEC section 3, Ingest) into columns, many readings at once, for `decode/scan.py`.
//!
//! It reads what clients usually send and nothing else: at the first thing out of the ordinary it stops, and the
//! decoder in Python, which knows all the rest, goes on from there. So it never says that something is wrong.
//!
//! All of it is safe Rust but for this file, where addresses become slices.

#[forbid(unsafe_code)]
mod bulk;
#[forbid(unsafe_code)]
mod cursor;
#[forbid(unsafe_code)]
mod values;

use std::slice::{from_raw_parts, from_raw_parts_mut};

pub use bulk::{Object, Span};

/// Where the caller keeps what is found. `scan.py` has the same fields in the same order.
#[repr(C)]
pub struct Buffers {
    readings_max: u64,
    objects_max: u64,
    spans: *mut Span,
    sensors: *mut i32,
    times_us: *mut i64,
    time_kinds: *mut u8,
    values: *mut f64,
    statuses: *mut i32,
    battery: *mut f64,
    rssi: *mut f64,
    lqi: *mut f64,
    battery_voltage: *mut f64,
    objects: *mut Object,
    sensor_names: *mut Span,
    status_names: *mut Span,
    readings: u64,
    object_count: u64,
    sensor_count: u64,
    status_count: u64,
    describes: u8,
    metadata: u8,
    unusual: u8,
    incomplete: u8,
}

/// What `Buffers` means: changes with it, so that a library of another version is not used.
#[no_mangle]
pub extern "C" fn sensorkeep_scan_version() -> u32 {
    3
}

/// Read the equipment objects of text[start..size] into `buffers`; see `bulk::read`.
///
/// # Safety
/// `text` has `size` bytes, no more than u32 counts; each column of `buffers`, and either list of names, has room for
/// `readings_max` elements, and `objects` for `objects_max`; nobody else uses any of it meanwhile.
#[no_mangle]
pub unsafe extern "C" fn sensorkeep_scan(
    text: *const u8,
    size: u64,
    start: u64,
    object_bytes_max: u64,
    buffers: *mut Buffers,
) {
    let buffers = &mut *buffers;
    let rows = buffers.readings_max as usize;
    let columns = bulk::Columns {
        spans: from_raw_parts_mut(buffers.spans, rows),
        sensors: from_raw_parts_mut(buffers.sensors, rows),
        times_us: from_raw_parts_mut(buffers.times_us, rows),
        time_kinds: from_raw_parts_mut(buffers.time_kinds, rows),
        values: from_raw_parts_mut(buffers.values, rows),
        statuses: from_raw_parts_mut(buffers.statuses, rows),
        battery: from_raw_parts_mut(buffers.battery, rows),
        rssi: from_raw_parts_mut(buffers.rssi, rows),
        lqi: from_raw_parts_mut(buffers.lqi, rows),
        battery_voltage: from_raw_parts_mut(buffers.battery_voltage, rows),
    };
    let objects_max = buffers.objects_max as usize;
    let text = from_raw_parts(text, size as usize);
    let found = bulk::read(text, start as usize, object_bytes_max as usize, objects_max, columns);
    from_raw_parts_mut(buffers.objects, objects_max)[..found.objects.len()].copy_from_slice(&found.objects);
    from_raw_parts_mut(buffers.sensor_names, rows)[..found.sensors.len()].copy_from_slice(&found.sensors);
    from_raw_parts_mut(buffers.status_names, rows)[..found.statuses.len()].copy_from_slice(&found.statuses);
    buffers.readings = found.readings as u64;
    buffers.object_count = found.objects.len() as u64;
    buffers.sensor_count = found.sensors.len() as u64;
    buffers.status_count = found.statuses.len() as u64;
    buffers.describes = u8::from(found.describes);
    buffers.metadata = u8::from(found.metadata);
    buffers.unusual = u8::from(found.stop == Some(cursor::Stop::Unusual));
    buffers.incomplete = u8::from(found.stop == Some(cursor::Stop::Incomplete));
}
