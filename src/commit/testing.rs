//! What the tests of this module share.

use std::io::Write;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use super::footer::{BODY, RUN_ID};
use super::output::Output;
use super::upload::{Body, Stored};

/// A part without rows of the run `run_id`, with `footer` in its footer.
pub fn part(run_id: &str, footer: &[(&str, &str)]) -> Vec<u8> {
    let pairs = [&[(RUN_ID, run_id)], footer].concat();
    let pairs = pairs.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), (*value).to_owned()));
    let properties = WriterProperties::builder().set_key_value_metadata(Some(pairs.collect())).build();
    let schema = Arc::new(Schema::empty());
    let mut file = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut file, Arc::clone(&schema), Some(properties)).expect("a writer");
    writer.write(&RecordBatch::new_empty(schema)).expect("no rows");
    writer.flush().expect("no row group");
    writer.sync().expect("to memory");
    let body = Body::of(writer.inner()).to_string();
    writer.append_key_value_metadata(KeyValue::new(BODY.to_owned(), body));
    writer.close().expect("a footer");
    file
}

/// Publish a [`part`] under `name`.
pub fn store_part(output: &Output, run_id: &str, name: &str, footer: &[(&str, &str)]) -> Stored {
    let mut upload = output.start_upload(run_id);
    upload.write_all(&part(run_id, footer)).expect("a buffer takes anything");
    upload.finish(output.path_of(name)).wait(output.runtime()).expect("stored")
}
