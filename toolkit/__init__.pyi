"""The public names: editors read them here, and ``__init__.py`` loads them from here."""

from . import plots as plots
from .attribution import (
    PromptAttributions as PromptAttributions,
    prompt_attributions as prompt_attributions,
)
from .averaging import (
    PartSearch as PartSearch,
    average as average,
    barriers as barriers,
    bezier_bend as bezier_bend,
    interpolate as interpolate,
    search_parts as search_parts,
)
from .displacement import (
    SingleTokenTheory as SingleTokenTheory,
    displacement_verdict as displacement_verdict,
    mass_by_word as mass_by_word,
    mass_flow as mass_flow,
    single_token_theory as single_token_theory,
)
from .dynamics import (
    StepRecord as StepRecord,
    TrainingRun as TrainingRun,
    Trajectory as Trajectory,
    predict_step as predict_step,
    train as train,
)
from .entanglements import (
    Entanglement as Entanglement,
    entanglement as entanglement,
    suggest_lr as suggest_lr,
)
from .gradients import (
    Gram as Gram,
    PairStats as PairStats,
    Preconditioner as Preconditioner,
    TokenContributions as TokenContributions,
    TokenMatrix as TokenMatrix,
    gram as gram,
    pair_stats as pair_stats,
    token_contributions as token_contributions,
    token_matrix as token_matrix,
)
from .kernel import (
    Influence as Influence,
    frozen_kernel_dynamics as frozen_kernel_dynamics,
    influence as influence,
    kernel_alignment as kernel_alignment,
    margin_kernel as margin_kernel,
)
from .losses import (
    LOSSES as LOSSES,
    Loss as Loss,
    LossWeights as LossWeights,
    loss_table as loss_table,
    loss_weights as loss_weights,
)
from .model import (
    PairLogps as PairLogps,
    Policy as Policy,
    Provenance as Provenance,
    load_model as load_model,
    per_token_logps as per_token_logps,
    perplexity as perplexity,
    sample_responses as sample_responses,
)
from .pairs import (
    EncodedPair as EncodedPair,
    PairError as PairError,
    PairList as PairList,
    PreferencePair as PreferencePair,
    audit_pairs as audit_pairs,
    encode as encode,
    load_pairs as load_pairs,
    shipped_pairs as shipped_pairs,
)
from .remedies import (
    UPDATE_RULES as UPDATE_RULES,
    Constrained as Constrained,
    UpdateRule as UpdateRule,
    contrast_only as contrast_only,
    mask_frame as mask_frame,
    rule_table as rule_table,
)
from .remedy_comparison import (
    compare_remedies as compare_remedies,
    lowest_ches as lowest_ches,
)
from .scoring import (
    FilteredPairs as FilteredPairs,
    PairStream as PairStream,
    export_pairs as export_pairs,
    filter_pairs as filter_pairs,
    length_confound as length_confound,
    quantile_subsets as quantile_subsets,
    read_scores as read_scores,
    score_pairs as score_pairs,
)
from .similarities import ches_tokens as ches_tokens, similarity as similarity
from .widgets import (
    DatasetExplorer as DatasetExplorer,
    LossExplorer as LossExplorer,
    PairExplorer as PairExplorer,
    TrajectoryExplorer as TrajectoryExplorer,
)
