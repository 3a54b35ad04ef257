// What the library exports: the registration of its operators, and what it says of itself.
#include <cstdio>
#include <string>

#include "custom_op.h"

namespace ofq {

namespace {

constexpr const char* DOMAIN_NAME = "ofq";
constexpr int DOMAIN_VERSION = 1;

const Api* runtime;  // of the first registration
int runtime_minor;   // of version 1.minor

// Adds the operators' domain, made once, to a session's options.
void add_domain(OrtSessionOptions* options) {
  static OrtCustomOpDomain* const domain = [] {
    OrtCustomOpDomain* made = nullptr;
    expect_ok(ort().CreateCustomOpDomain(DOMAIN_NAME, &made));
    for (const OrtCustomOp* op : {patches_op(), layer_norm_op(), linear_op(), linear_add_op(), linear_head_op(), attention_op()})
      expect_ok(ort().CustomOpDomain_Add(made, op));
    return made;
  }();
  expect_ok(ort().AddCustomOpDomain(options, domain));
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') result += '\\';
    result += c < ' ' && c >= 0 ? ' ' : c;
  }
  return result + '"';
}

std::string description() {
  std::string chosen = "null", error = "null";
  try {
    chosen = quoted(kernels().name);
  } catch (const std::exception& caught) {
    error = quoted(caught.what());
  }
  std::string all;
  for (const Choice& choice : choices())
    all += std::string(all.empty() ? "" : ", ") + "{\"name\": " + quoted(choice.name) +
           ", \"available\": " + (choice.available ? "true" : "false") + ", \"why\": " + quoted(choice.why) + "}";
  return "{\"version\": " + quoted(OFQ_VERSION) + ", \"domain\": " + quoted(DOMAIN_NAME) +
         ", \"domain_version\": " + std::to_string(DOMAIN_VERSION) + ", \"chosen\": " + chosen + ", \"error\": " + error +
         ", \"choices\": [" + all + "]}";
}

}  // namespace

const Api& ort() { return *runtime; }
bool can_infer_shapes() { return runtime_minor >= 24; }

}  // namespace ofq

OFQ_EXPORT OrtStatus* OFQ_CALL RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace ofq;
  const void* const table = base->GetApi(ORT_VERSION);
  if (!table) {  // a null status would mean success, and the user would only hear that an operator is unknown
    char message[100];
    std::snprintf(message, sizeof(message), "ofq_kernels needs ONNX Runtime 1.18 or newer, this is %s", base->GetVersionString());
    return function_at<decltype(Api::CreateStatus)>(base->GetApi(1), 0)(ORT_FAIL, message);
  }
  static const void* const first_table = table;
  if (table != first_table)
    return Api(table).CreateStatus(ORT_FAIL, "ofq_kernels is in use by another ONNX Runtime of this process");
  static const Api first(table);  // never destroyed: operators of sessions that outlive us call it
  static const bool is_known = [base] {
    runtime = &first;
    return std::sscanf(base->GetVersionString(), "1.%d", &runtime_minor) == 1;
  }();
  (void)is_known;
  return guarded("ofq_kernels", [&] { add_domain(options); });
}

// JSON: the kernels that were chosen, why the others were not, and versions. Valid as long as the library is loaded; null without memory.
OFQ_EXPORT const char* OFQ_CALL OfqKernelsDescribe() {
  try {
    static const std::string text = ofq::description();
    return text.c_str();
  } catch (...) {
    return nullptr;
  }
}
