//! Shapes and memory sizes in trtexec's syntax: `input_1:32x384x384x3`, `workspace:512M`.

use super::Profile;
use crate::engine::onnx::OnnxInput;

/// The shape arguments of a command line; `min`, `opt` and `max` override `all`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShapeArguments {
    /// `--shapes`: all three shapes.
    pub all: Option<String>,
    /// `--minShapes` as typed.
    pub min: Option<String>,
    /// `--optShapes` as typed.
    pub opt: Option<String>,
    /// `--maxShapes` as typed.
    pub max: Option<String>,
}

impl ShapeArguments {
    /// The optimization profile for `input`. A shape that is not given is the model's own, if that is fixed.
    ///
    /// # Errors
    /// If a shape cannot be parsed, names another input, does not fit the model, or is missing for a model
    /// with dynamic dimensions, or if min ≤ opt ≤ max does not hold.
    pub fn profile(&self, input: &OnnxInput) -> Result<Profile, String> {
        let dims = |name: &str, argument: &Option<String>| match argument.as_ref().or(self.all.as_ref()) {
            Some(text) => parse_shape(text, input).map_err(|message| format!("--{name}: {message}")),
            None if input.dims.iter().all(|&dim| dim > 0) => Ok(input.dims.clone()),
            None => Err(format!(
                "input {} has dimensions {:?}, where -1 is dynamic: give --{name} {}:{}",
                input.name,
                input.dims,
                input.name,
                example(&input.dims)
            )),
        };
        let profile = Profile {
            min: dims("minShapes", &self.min)?,
            opt: dims("optShapes", &self.opt)?,
            max: dims("maxShapes", &self.max)?,
        };
        let ascending = |low: &[i64], high: &[i64]| low.iter().zip(high).all(|(low, high)| low <= high);
        if !ascending(&profile.min, &profile.opt) || !ascending(&profile.opt, &profile.max) {
            return Err("--minShapes, --optShapes and --maxShapes must ascend".to_owned());
        }
        Ok(profile)
    }
}

fn example(dims: &[i64]) -> String {
    let texts: Vec<_> = dims.iter().map(|&dim| if dim < 0 { 32 } else { dim }.to_string()).collect();
    texts.join("x")
}

fn parse_shape(text: &str, input: &OnnxInput) -> Result<Vec<i64>, String> {
    let (name, dims) =
        text.rsplit_once(':').ok_or_else(|| format!("{text} is not of the form NAME:DIMxDIM…"))?;
    if name != input.name {
        return Err(format!("the model has no input {name}, its input is {}", input.name));
    }
    let dims = dims
        .split('x')
        .map(|dim| dim.parse().ok().filter(|&dim: &i64| dim > 0))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| format!("{dims} is not a list of dimensions such as {}", example(&input.dims)))?;
    let fits = dims.len() == input.dims.len()
        && dims.iter().zip(&input.dims).all(|(asked, declared)| *declared < 0 || asked == declared);
    if fits { Ok(dims) } else { Err(format!("{dims:?} does not fit the model's {:?}", input.dims)) }
}

/// Parse the workspace size, in bytes, of an argument such as `workspace:512M`. A number without B, K, M
/// or G is in MiB.
pub fn workspace_bytes(text: &str) -> Result<usize, String> {
    let wrong = || format!("{text} is not a memory pool size such as workspace:512M");
    let size = text.strip_prefix("workspace:").ok_or_else(wrong)?;
    let (number, shift) = match size.char_indices().last() {
        Some((at, 'B')) => (&size[..at], 0),
        Some((at, 'K')) => (&size[..at], 10),
        Some((at, 'M')) => (&size[..at], 20),
        Some((at, 'G')) => (&size[..at], 30),
        _ => (size, 20),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    if !number.is_finite() || number <= 0.0 {
        return Err(wrong());
    }
    Ok((number * f64::from(1_u32 << shift)) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::onnx::Precision;

    fn input(dims: &[i64]) -> OnnxInput {
        OnnxInput { name: "input:0".to_owned(), dims: dims.to_vec(), batch: None, precision: Precision::Fp32 }
    }

    #[test]
    fn shapes_are_parsed_as_by_trtexec() {
        let arguments = ShapeArguments {
            all: Some("input:0:32x8x8x3".into()),
            min: Some("input:0:1x8x8x3".into()),
            ..ShapeArguments::default()
        };
        let profile = arguments.profile(&input(&[-1, 8, 8, 3])).expect("a profile");
        assert_eq!((profile.min[0], profile.opt[0], profile.max[0]), (1, 32, 32));
        let fixed = ShapeArguments::default().profile(&input(&[4, 8, 8, 3])).expect("the model's own");
        assert_eq!(fixed.min, [4, 8, 8, 3]);
    }

    #[test]
    fn the_error_for_a_wrong_shape_says_what_is_wrong() {
        let all = |text: &str| ShapeArguments { all: Some(text.to_owned()), ..ShapeArguments::default() };
        for (arguments, words) in [
            (ShapeArguments::default(), "give --minShapes input:0:32x8x8x3"),
            (all("x:1x8x8x3"), "no input x, its input is input:0"),
            (all("input:0:1x8x8"), "does not fit"),
            (all("input:0:1x9x8x3"), "does not fit"),
            (all("input:0:0x8x8x3"), "not a list of dimensions"),
            (all("input:0"), "no input input, its input is input:0"),
            (ShapeArguments { max: Some("input:0:1x8x8x3".into()), ..all("input:0:2x8x8x3") }, "must ascend"),
        ] {
            let message = arguments.profile(&input(&[-1, 8, 8, 3])).expect_err(words);
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn memory_pool_sizes_have_trtexecs_units() {
        assert_eq!(workspace_bytes("workspace:2"), Ok(2 << 20));
        assert_eq!(workspace_bytes("workspace:0.5G"), Ok(512 << 20));
        assert_eq!(workspace_bytes("workspace:100B"), Ok(100));
        for wrong in ["512M", "workspace:", "workspace:-1", "workspace:xM"] {
            assert!(workspace_bytes(wrong).is_err(), "{wrong}");
        }
    }
}
