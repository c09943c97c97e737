//! The tensor shape of a plan's batches, and checks that a model accepts it.
//!
//! Dimensions are those of tensors, batch first; a dynamic dimension is negative.

use crate::config::Layout;
use crate::plan::Plan;

/// Dimensions of the tensor of a full batch of the plan.
pub(super) fn input_dims(plan: &Plan) -> [i64; 4] {
    let size = plan.tensor_size();
    let (height, width) = (i64::from(size.height), i64::from(size.width));
    let batch = plan.engine.batch_size as i64;
    match plan.preprocess.layout {
        Layout::Nhwc => [batch, height, width, 3],
        Layout::Nchw => [batch, 3, height, width],
    }
}

/// Check that the input `name`, with dimensions `declared`, accepts the plan's batches.
pub(super) fn check_input(name: &str, declared: &[i64], plan: &Plan) -> Result<(), String> {
    let made = input_dims(plan);
    let fits = declared.len() == 4 && declared.iter().zip(made).all(|(&has, wants)| has < 0 || has == wants);
    if fits {
        return Ok(());
    }
    let layout = if plan.preprocess.layout == Layout::Nhwc { "nhwc" } else { "nchw" };
    let (declared, made) = (dims_text(declared), dims_text(&made));
    Err(format!("input {name} has shape {declared}, the pipeline makes {made} ({layout})"))
}

/// Number of scores in a row of the output `name`; `None` if it is dynamic.
pub(super) fn row_length(name: &str, declared: &[i64]) -> Result<Option<usize>, String> {
    let Some((_, row)) = declared.split_first().filter(|(_, row)| !row.is_empty()) else {
        let shape = dims_text(declared);
        return Err(format!("output {name} has shape {shape}, expected one row of scores for each image"));
    };
    let is_dynamic = row.iter().any(|&dim| dim < 0);
    Ok((!is_dynamic).then(|| row.iter().map(|&dim| dim as usize).product()))
}

/// Check that the plan has a label for each of `classes` scores, if it has labels.
pub(super) fn check_labels(classes: usize, plan: &Plan) -> Result<(), String> {
    match &plan.model.labels {
        Some(labels) if labels.len() != classes => {
            Err(format!("it has {classes} scores a row, model.labels has {} names", labels.len()))
        }
        _ => Ok(()),
    }
}

fn dims_text(dims: &[i64]) -> String {
    let texts: Vec<_> =
        dims.iter().map(|&dim| if dim < 0 { "N".to_owned() } else { dim.to_string() }).collect();
    texts.join("×")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_row_is_the_product_of_the_dimensions_after_the_batch() {
        assert_eq!(row_length("p", &[-1, 1000]), Ok(Some(1000)));
        assert_eq!(row_length("p", &[-1, 10, 2]), Ok(Some(20)));
        assert_eq!(row_length("p", &[-1, -1]), Ok(None));
        let message = row_length("p", &[32]).expect_err("no row");
        assert!(message.contains("output p has shape 32"), "{message}");
    }
}
