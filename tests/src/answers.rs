//! What `ambit client` says about answers, and `ambit echo` about requests.

use serde_json::Value;

/// The status; nothing if no answer came.
pub fn status(answer: &Value) -> Option<u64> {
    answer["status"].as_u64()
}

/// The statuses of answers that all came.
pub fn statuses(answers: &[Value]) -> Vec<u64> {
    answers.iter().map(|answer| status(answer).unwrap_or_else(|| panic!("no answer: {answer}"))).collect()
}

/// The answer's first header of this name.
pub fn header<'a>(answer: &'a Value, name: &str) -> Option<&'a str> {
    let headers = answer["headers"].as_array().unwrap_or_else(|| panic!("no headers: {answer}"));
    headers.iter().find(|header| header[0] == name).and_then(|header| header[1].as_str())
}

/// The header that the application got under this name.
pub fn passed_on(answer: &Value, name: &str) -> Option<String> {
    let body = answer["body"].as_str().unwrap_or_default();
    let told: Value = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    header(&told, name).map(str::to_owned)
}
