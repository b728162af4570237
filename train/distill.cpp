#include "train/distill.h"
#include "train/checkpoint.h"  // start_folder

namespace llatte {
namespace {

Tensor teacher_states(Llama& teacher, const Tensor& tokens_BT) {
  const NoGrad off;
  return teacher.hidden(tokens_BT).value.reshape({tokens_BT.numel(), teacher.config().hidden_size});
}

}  // namespace

DistillLoss distill_loss(Llama& student, Llama& teacher, const Tensor& tokens_BT, const Tensor& targets_BT,
                         const DistillRule& rule) {
  LLATTE_CHECK(tokens_BT.shape() == targets_BT.shape(), "distill: tokens are ", tokens_BT.shape(),
               " but targets ", targets_BT.shape());
  const int64_t N = tokens_BT.numel();
  const Tensor teacher_ND = teacher_states(teacher, tokens_BT);  // first: the student's tape is not there yet
  const Var hidden_ND = reshape(student.hidden(tokens_BT), {N, student.config().hidden_size});
  return linear_distill(hidden_ND, student.head_weight(), teacher_ND, teacher.head_weight().value,
                        targets_BT.contiguous().reshape({N}), rule);
}

Checkpoint open_teacher(const Distill& d, const std::function<void(const std::string&)>& say) {
  LLATTE_CHECK(std::filesystem::exists(d.teacher), d.teacher,
               ": there is no teacher here; see distill.teacher");
  return open_checkpoint(start_folder(d.teacher, say));
}

void check_teacher(const LlamaConfig& student, const LlamaConfig& teacher, int64_t T,
                   const std::string& where) {
  LLATTE_CHECK(teacher.vocab_size == student.vocab_size, where, ": a teacher with a vocabulary of ",
               teacher.vocab_size, " cannot teach a model with one of ", student.vocab_size,
               "; name the model it was made from in distill.teacher");
  LLATTE_CHECK(teacher.max_position_embeddings >= T, where, ": the teacher has ",
               teacher.max_position_embeddings, " positions, fewer than tokens.sequence_length ", T,
               "; shorten the sequences");
}

}  // namespace llatte
